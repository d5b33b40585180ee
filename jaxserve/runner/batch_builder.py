"""From the scheduler's decision to a packed step, and the host's mirror of each running row."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from jaxserve.batch.buckets import Bucket
from jaxserve.batch.step_batch import PackedStep
from jaxserve.core.config import EngineConfig
from jaxserve.runner.checks import check_step
from jaxserve.sampling.rows import RowSampling
from jaxserve.schedule.output import RowStart, ScheduledRow, SchedulerOutput


@dataclass(slots=True)
class Row:
    """What the host knows of one state row. page_ids: the page-table line as the device has it."""

    start: RowStart
    sampling: RowSampling
    page_ids: list[int] = field(default_factory=list[int])

    def changed_columns(self, page_ids: list[int]) -> list[int]:
        """Columns where a longer (or, by a shared twin page, exchanged) table differs from the device's."""
        known = len(self.page_ids)
        exchanged = (
            [] if page_ids[:known] == self.page_ids else [i for i in range(known) if page_ids[i] != self.page_ids[i]]
        )
        return exchanged + list(range(known, len(page_ids)))


@dataclass(slots=True)
class RowArrays:
    """Per state row, what every step gathers for its batch rows: numbers set once at the row's start."""

    num_rows: int
    floats: dict[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])
    seeds_R2: np.ndarray = field(init=False)
    top_k_R: np.ndarray = field(init=False)
    is_random_R: np.ndarray = field(init=False)
    has_filters_R: np.ndarray = field(init=False)
    wants_logprobs_R: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        names = ("temperature_B", "top_p_B", "min_p_B", "repetition_B", "presence_B", "frequency_B")
        self.floats = {name: np.zeros(self.num_rows, np.float32) for name in names}
        self.seeds_R2 = np.zeros((self.num_rows, 2), np.int32)
        self.top_k_R = np.zeros(self.num_rows, np.int32)
        self.is_random_R, self.has_filters_R, self.wants_logprobs_R = np.zeros((3, self.num_rows), np.bool_)

    def load(self, start: RowStart) -> None:
        row, params = start.row, start.params
        values = (
            params.temperature,
            params.top_p,
            params.min_p,
            params.repetition_penalty,
            params.presence_penalty,
            params.frequency_penalty,
        )
        for array, value in zip(self.floats.values(), values, strict=True):
            array[row] = value
        self.seeds_R2[row] = np.array([start.seed >> 32 & 0xFFFFFFFF, start.seed & 0xFFFFFFFF], np.uint32).view(
            np.int32
        )
        self.top_k_R[row] = max(params.top_k, 0)
        self.is_random_R[row] = params.temperature > 0
        self.has_filters_R[row] = params.top_k > 0 or params.top_p < 1 or params.min_p > 0
        self.wants_logprobs_R[row] = params.logprobs is not None


class BatchBuilder:
    """Owns the mirror of the running rows; `build` is called once a step, in order."""

    def __init__(self, config: EngineConfig, pick: Callable[[int, int], Bucket]) -> None:
        self._config = config
        self._pick = pick
        self._page_size = config.cache.page_size
        self._num_slots = config.cache.num_pages * config.cache.page_size
        self.rows: list[Row | None] = [None] * config.scheduler.max_num_seqs
        self._arrays = RowArrays(config.scheduler.max_num_seqs)

    def start_row(self, start: RowStart) -> Row:
        """A request enters a row; the caller loads what its `sampling` needs to the device."""
        model = self._config.model
        sampling = RowSampling(
            start.params, start.prompt_token_ids, start.output_token_ids, model.vocab_size, model.eos_token_ids
        )
        row = Row(start, sampling)
        self.rows[start.row] = row
        self._arrays.load(start)
        return row

    def row(self, index: int) -> Row:
        row = self.rows[index]
        assert row is not None, f"state row {index} was never started"
        return row

    def oversized_tables(self, output: SchedulerOutput) -> list[ScheduledRow]:
        """Rows with more new pages than their tokens account for (a prefix-cache hit): load their whole line."""
        return [
            row
            for row in output.rows
            if len(self.row(row.row).changed_columns(row.page_ids)) > len(row.token_ids) // self._page_size + 1
        ]

    def build(self, output: SchedulerOutput) -> PackedStep:
        """The packed inputs of this step, in the smallest bucket that holds it."""
        bucket = self._pick(len(output.rows), output.num_tokens)
        step = self.empty_step(bucket)
        self._fill_tokens(step, output.rows)
        self._fill_pages(step, output.rows)
        self._fill_sampling(step, output.rows)
        if self._config.check_inputs:
            check_step(step, output, self._config)
        return step

    def empty_step(self, bucket: Bucket) -> PackedStep:
        """A step of padding only: computes nothing that is kept (for warm-up, and to be filled)."""
        return PackedStep(bucket, self._page_size, num_slots=self._num_slots, num_state_rows=len(self.rows))

    def _fill_tokens(self, step: PackedStep, rows: list[ScheduledRow]) -> None:
        """Token and row geometry; row i owns tokens [query_starts[i], query_starts[i + 1])."""
        size = self._page_size
        lengths = np.array([len(row.token_ids) for row in rows], np.int32)
        ends = np.cumsum(lengths, dtype=np.int32)
        total, count = int(ends[-1]), len(rows)
        step["row_counts"][:] = int((lengths == 1).sum()), count
        step["query_starts"][1 : count + 1] = ends
        step["query_starts"][count + 1 :] = total
        step["last_tokens_B"][:count] = ends - 1
        firsts = np.array([row.start for row in rows], np.int32)
        step["context_lens_B"][:count] = firsts + lengths
        step["token_ids_T"][:total] = [token for row in rows for token in row.token_ids]
        positions = np.arange(total, dtype=np.int32) + np.repeat(firsts - (ends - lengths), lengths)
        step["positions_T"][:total] = positions
        prompt_lens = np.array([row.num_prompt_tokens for row in rows], np.int32)
        step["rope_lens_T"][:total] = np.maximum(np.repeat(prompt_lens, lengths), positions + 1)
        # Pages of the scheduled positions: a row of n tokens touches few pages, found by position.
        pages = np.concatenate([_pages_of(row, size) for row in rows])
        step["slots_T"][:total] = pages * size + positions % size
        self._fill_next_ids(step, rows, ends)

    def _fill_next_ids(self, step: PackedStep, rows: list[ScheduledRow], ends: np.ndarray) -> None:
        for row, end in zip(rows, ends, strict=True):
            if row.num_prompt_logprobs is None:
                continue
            step["use_prompt_logprobs"][...] = 1
            stop = row.start + len(row.token_ids) + 1
            following = self.row(row.row).start.prompt_token_ids[row.start + 1 : stop]
            begin = int(end) - len(row.token_ids)
            step["next_ids_T"][begin : begin + len(following)] = following

    def _fill_pages(self, step: PackedStep, rows: list[ScheduledRow]) -> None:
        """Page-table columns the device does not have yet."""
        used = 0
        for row in rows:
            mirror = self.row(row.row)
            columns = mirror.changed_columns(row.page_ids)
            if columns:
                where = slice(used, used + len(columns))
                step["update_rows_U"][where] = row.row
                step["update_columns_U"][where] = columns
                step["update_pages_U"][where] = [row.page_ids[column] for column in columns]
                used += len(columns)
                mirror.page_ids = row.page_ids

    def _fill_sampling(self, step: PackedStep, rows: list[ScheduledRow]) -> None:
        count, arrays = len(rows), self._arrays
        state_rows = np.array([row.row for row in rows], np.int32)
        active = np.array([row.samples for row in rows], np.bool_)
        step["state_rows_B"][:count] = state_rows
        step["is_active_B"][:count] = active
        step["sample_positions_B"][:count] = step["context_lens_B"][:count]
        step["seeds_B2"][:count] = arrays.seeds_R2[state_rows]
        step["top_k_B"][:count] = arrays.top_k_R[state_rows]
        for name, values in arrays.floats.items():
            step[name][:count] = values[state_rows]
        sampling_rows = state_rows[active]
        random_rows = sampling_rows[arrays.is_random_R[sampling_rows]]
        step["use_random"][...] = bool(len(random_rows))
        step["use_filters"][...] = bool(arrays.has_filters_R[random_rows].any())
        step["use_logprobs"][...] = bool(arrays.wants_logprobs_R[sampling_rows].any())
        mirrors = [self.row(int(row)).sampling for row in sampling_rows]
        step["use_penalties"][...] = any(mirror.has_penalties for mirror in mirrors)
        step["use_bias"][...] = any(mirror.has_bias for mirror in mirrors)


def _pages_of(row: ScheduledRow, page_size: int) -> np.ndarray:
    """The page id of each scheduled position of a row."""
    first, count = row.start, len(row.token_ids)
    if count == 1:
        return np.array([row.page_ids[first // page_size]], np.int32)
    begin = first // page_size
    touched = np.array(row.page_ids[begin : (first + count - 1) // page_size + 1], np.int32)
    return touched[np.arange(first, first + count) // page_size - begin]
