"""`ModelRunner`: owner of the weights and of everything that lives on the device between steps."""

import dataclasses
from dataclasses import dataclass
from itertools import accumulate

import jax
import numpy as np
from jaxtyping import Array

from jaxserve.batch.buckets import Bucket
from jaxserve.core.config import EngineConfig
from jaxserve.core.outputs import TokenLogprobs
from jaxserve.core.step_result import RowResult
from jaxserve.models.weights import LoadedModel
from jaxserve.runner.batch_builder import BatchBuilder, Row
from jaxserve.runner.step import StepOutput
from jaxserve.runner.steps import Steps
from jaxserve.sampling.state import SamplingState
from jaxserve.schedule.output import ScheduledRow, SchedulerOutput


class StepFailedError(Exception):
    """The device refused a step; the pool may be gone. `ModelRunner.rebuild` makes a new one."""


@dataclass(frozen=True, slots=True)
class InFlight:
    """A dispatched step whose tokens were not read yet."""

    scheduled: SchedulerOutput
    output: StepOutput


class ModelRunner:
    """Runs the scheduler's decisions. `dispatch` starts a step without waiting; `collect` waits for its tokens.

    steps: the compiled programs, at least those that `Steps.first_needed` names.
    kv_scales_L2K: of each layer's keys and values in an 8-bit pool; None for 1.
    """

    def __init__(
        self,
        config: EngineConfig,
        loaded: LoadedModel,
        steps: Steps,
        kv_scales_L2K: np.ndarray | None = None,
    ) -> None:
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
            return InFlight(scheduled, self._run(step.bucket, step.vector))
        except jax.errors.JaxRuntimeError as error:
            raise StepFailedError(str(error)) from error

    def collect(self, flight: InFlight) -> list[RowResult]:
        """Wait for a step's tokens. Raises StepFailedError where the device failed meanwhile."""
        try:
            host: StepOutput = jax.device_get(self._wanted(flight))
            starts = accumulate((len(row.token_ids) for row in flight.scheduled.rows), initial=0)
            results = [
                self._result(i, first, row, host)
                for i, (first, row) in enumerate(zip(starts, flight.scheduled.rows, strict=False))
            ]
            for result, row in zip(results, flight.scheduled.rows, strict=True):
                if result.token_id is not None:
                    self._count_token(row, result.token_id)
        except jax.errors.JaxRuntimeError as error:
            raise StepFailedError(str(error)) from error
        return results

    def _run(self, bucket: Bucket, vector: np.ndarray) -> StepOutput:
        output, self._state = self._steps[bucket](self._leaves, self._state, vector)
        return output

    def _wanted(self, flight: InFlight) -> StepOutput:
        """Only what somebody asked for crosses to the host: the rest is replaced by None."""
        output, rows = flight.output, flight.scheduled.rows
        if all(row.num_prompt_logprobs is None for row in rows):
            output = dataclasses.replace(output, prompt=None)
        if all(self._builder.row(row.row).start.params.logprobs is None for row in rows):
            slim = dataclasses.replace(
                output.sampled, logprob_B=None, rank_B=None, top_ids_BK=None, top_logprobs_BK=None
            )
            output = dataclasses.replace(output, sampled=slim)
        return output

    def _result(self, index: int, first: int, row: ScheduledRow, host: StepOutput) -> RowResult:
        sampled = host.sampled
        result = RowResult(row.request_id, None, prompt_logprobs=self._prompt_logprobs(first, row, host))
        if row.samples:
            result.token_id = int(sampled.token_ids_B[index])
            result.is_finite = bool(sampled.is_finite_B[index])
            wanted = self._builder.row(row.row).start.params.logprobs
            if wanted is not None:
                top = (sampled.top_ids_BK[index], sampled.top_logprobs_BK[index])
                result.logprobs = _entry(result.token_id, sampled.logprob_B[index], sampled.rank_B[index], top, wanted)
        return result

    def _prompt_logprobs(self, first: int, row: ScheduledRow, host: StepOutput) -> list[TokenLogprobs] | None:
        """Entries for the prompt positions that this chunk's positions predict; first: its first token in the step."""
        if row.num_prompt_logprobs is None:
            return None
        prompt = self._builder.row(row.row).start.prompt_token_ids
        following = prompt[row.start + 1 : row.start + 1 + len(row.token_ids)]
        return [
            _entry(
                token_id,
                host.prompt.logprob_T[first + i],
                host.prompt.rank_T[first + i],
                (host.prompt.top_ids_TK[first + i], host.prompt.top_logprobs_TK[first + i]),
                row.num_prompt_logprobs,
            )
            for i, token_id in enumerate(following)
        ]

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

    def _count_token(self, row: ScheduledRow, token_id: int) -> None:
        """The host's mirror learns of a sampled token; a bias that this changes goes to the device."""
        bias = self._builder.row(row.row).sampling.update(token_id)
        if bias is not None:
            self._dirty_rows[row.row] = True
            self._set_sampling(self._steps.small("load_bias")(self._state.sampling, np.int32(row.row), bias))

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


def _entry(token_id: int, logprob: Array, rank: Array, top: tuple[Array, Array], wanted: int) -> TokenLogprobs:
    ids, logprobs = top
    count = len(ids) if wanted < 0 else min(wanted, len(ids))
    return TokenLogprobs(token_id, float(logprob), int(rank), ids[:count].tolist(), logprobs[:count].tolist())
