"""`ModelRunner`: owner of the weights and of everything that lives on the device between steps."""

import dataclasses
from dataclasses import dataclass

import jax
import numpy as np

from jaxserve.batch.buckets import Bucket
from jaxserve.core.config import EngineConfig
from jaxserve.core.step_result import RowResult
from jaxserve.models.weights import LoadedModel
from jaxserve.runner.batch_builder import BatchBuilder, Row
from jaxserve.runner.results import read_results
from jaxserve.runner.step import StepOutput
from jaxserve.runner.steps import Steps
from jaxserve.sampling.state import SamplingState
from jaxserve.schedule.output import ScheduledRow, SchedulerOutput


class StepFailedError(Exception):
    """The device refused a step; the pool may be gone. `ModelRunner.rebuild` makes a new one."""


@dataclass(frozen=True, slots=True)
class InFlight:
    """A dispatched step whose tokens were not read yet.

    rows: the mirror of each scheduled row when it was dispatched; meanwhile another request may have its place.
    wanted: of the step's output what the host will read, on its way there; the rest is None.
    """

    scheduled: SchedulerOutput
    rows: list[Row]
    wanted: StepOutput


class ModelRunner:
    """Runs the scheduler's decisions. `dispatch` starts a step without waiting; `collect` waits for its tokens.

    steps: the compiled programs, at least those that `Steps.first_needed` names.
    kv_scales_L2K: of each layer's keys and values in an 8-bit pool; None for 1.
    waits: see `Layout.waits`.
    """

    def __init__(
        self,
        config: EngineConfig,
        loaded: LoadedModel,
        steps: Steps,
        kv_scales_L2K: np.ndarray | None = None,
        *,
        waits: bool = False,
    ) -> None:
        self._waits = waits
        self._config = config
        self._kv_scales_L2K = kv_scales_L2K
        self._leaves = loaded.leaves
        self.num_logprobs = config.num_logprobs
        self._steps = steps
        self._state = steps.initial_state(kv_scales_L2K)
        self._builder = BatchBuilder(config, steps.pick)
        self._dirty_rows = np.zeros(config.scheduler.max_num_seqs, np.bool_)
        # Once each, as a first run loads code and (on a GPU) captures the command buffer. A bucket that comes
        # later runs first with a real step: the state is the loop's alone.
        for bucket in steps.ready.all:
            self._run(bucket, self._builder.empty_step(bucket).vector)
        jax.block_until_ready(self._state)

    def rebuild(self) -> None:
        """Replace the device state after a failed step: empty pool, no rows (they all start again)."""
        del self._state  # its pool may still be there, and two do not fit
        self._state = self._steps.initial_state(self._kv_scales_L2K)
        self._builder = BatchBuilder(self._config, self._steps.pick)
        self._dirty_rows[:] = False

    def dispatch(self, scheduled: SchedulerOutput) -> InFlight:
        """Start one step. Raises StepFailedError where the device refuses it."""
        try:
            for start in scheduled.starts:
                self._load_sampling(self._builder.start_row(start))
            for row in self._builder.oversized_tables(scheduled):
                self._load_table(row)
            step = self._builder.build(scheduled)
            rows = [self._builder.row(row.row) for row in scheduled.rows]
            wanted = _wanted(self._run(step.bucket, step.vector), scheduled.rows, rows)
            for array in jax.tree.leaves(wanted):
                array.copy_to_host_async()
            return InFlight(scheduled, rows, wanted)
        except jax.errors.JaxRuntimeError as error:
            raise StepFailedError(str(error)) from error

    def collect(self, flight: InFlight) -> list[RowResult]:
        """Wait for a step's tokens. Raises StepFailedError where the device failed meanwhile."""
        try:
            results = read_results(flight.scheduled.rows, flight.rows, jax.device_get(flight.wanted))
            for result, row in zip(results, flight.rows, strict=True):
                if result.token_id is not None and not row.sampling.is_settled:
                    self._count_token(row, result.token_id)
        except jax.errors.JaxRuntimeError as error:
            raise StepFailedError(str(error)) from error
        return results

    def _run(self, bucket: Bucket, vector: np.ndarray) -> StepOutput:
        output, self._state = self._steps[bucket](self._leaves, self._state, vector)
        if self._waits:
            jax.block_until_ready(self._state)
        return output

    def _load_sampling(self, row: Row) -> None:
        """Bring a starting row's biases and counts to the device, or wipe those of the row's last user."""
        index, sampling = row.start.row, row.sampling
        needs = sampling.bias_V is not None or sampling.counts_V is not None
        if not needs and not self._dirty_rows[index]:
            return
        self._dirty_rows[index] = needs
        vocab_size = self._config.model.vocab_size
        bias = sampling.bias_V if sampling.bias_V is not None else np.zeros(vocab_size, np.float32)
        counts = sampling.counts_V if sampling.counts_V is not None else np.zeros(vocab_size, np.int32)
        mask = sampling.prompt_mask_V if sampling.prompt_mask_V is not None else np.zeros(vocab_size, np.bool_)
        self._set_sampling(self._steps.small("load_row")(self._state.sampling, np.int32(index), bias, counts, mask))

    def _count_token(self, row: Row, token_id: int) -> None:
        """The host's mirror learns of a sampled token; a bias that this changes goes to the device.

        Not if another request has the row by now: the token came after its request's end, and is dropped.
        """
        index = row.start.row
        bias = row.sampling.update(token_id)
        if bias is not None and self._builder.rows[index] is row:
            self._dirty_rows[index] = True
            self._builder.note_bias(row)
            self._set_sampling(self._steps.small("load_bias")(self._state.sampling, np.int32(index), bias))

    def _set_sampling(self, sampling: SamplingState) -> None:
        self._state = dataclasses.replace(self._state, sampling=sampling)

    def _load_table(self, row: ScheduledRow) -> None:
        """The whole page-table line of a row that starts with many pages at once."""
        columns = np.zeros(self._state.paged.page_table_RM.shape[1], np.int32)
        columns[: len(row.page_ids)] = row.page_ids
        table = self._steps.small("load_table")(self._state.paged.page_table_RM, np.int32(row.row), columns)
        self._state = dataclasses.replace(
            self._state, paged=dataclasses.replace(self._state.paged, page_table_RM=table)
        )
        self._builder.row(row.row).page_ids = row.page_ids


def _wanted(output: StepOutput, rows: list[ScheduledRow], mirrors: list[Row]) -> StepOutput:
    """Only what somebody asked for crosses to the host: the rest is replaced by None."""
    if all(row.num_prompt_logprobs is None for row in rows):
        output = dataclasses.replace(output, prompt=None)
    if all(mirror.start.params.logprobs is None for mirror in mirrors):
        slim = dataclasses.replace(output.sampled, logprob_B=None, rank_B=None, top_ids_BK=None, top_logprobs_BK=None)
        output = dataclasses.replace(output, sampled=slim)
    return output
