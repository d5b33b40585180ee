"""From the scheduler's decision to a packed step, and the host's mirror of each running row."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from jaxserve.batch.buckets import Bucket
from jaxserve.batch.step_batch import PackedStep
from jaxserve.core.config import EngineConfig
from jaxserve.runner.checks import check_step
from jaxserve.sampling.rows import RowSampling
from jaxserve.schedule.output import PENDING_TOKEN, RowStart, ScheduledRow, SchedulerOutput


@dataclass(slots=True)
class Row:
    """What the host knows of one state row.

    page_ids: the page-table line as the device has it. pending_position: where the token goes that the row's
    last step samples, None if it samples none (kept with check_inputs only).
    """

    start: RowStart
    sampling: RowSampling
    page_ids: list[int] = field(default_factory=list[int])
    pending_position: int | None = None

    def changed_columns(self, page_ids: list[int]) -> list[int]:
        """Columns where a longer (or, by a shared twin page, exchanged) table differs from the device's."""
        known = range(len(self.page_ids))
        exchanged = [i for i in known if page_ids[i] != self.page_ids[i]]
        return exchanged + list(range(len(self.page_ids), len(page_ids)))


@dataclass(slots=True)
class RowArrays:
    """Per state row, what every step gathers for its batch rows: numbers set at its start; has_bias also later."""

    num_rows: int
    floats: dict[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])
    seeds_R2: np.ndarray = field(init=False)
    top_k_R: np.ndarray = field(init=False)
    is_random_R: np.ndarray = field(init=False)
    has_filters_R: np.ndarray = field(init=False)
    has_penalties_R: np.ndarray = field(init=False)
    has_bias_R: np.ndarray = field(init=False)
    wants_logprobs_R: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        names = ("temperature_B", "top_p_B", "min_p_B", "repetition_B", "presence_B", "frequency_B")
        self.floats = {name: np.zeros(self.num_rows, np.float32) for name in names}
        self.seeds_R2 = np.zeros((self.num_rows, 2), np.int32)
        self.top_k_R = np.zeros(self.num_rows, np.int32)
        self.is_random_R, self.has_filters_R = np.zeros((2, self.num_rows), np.bool_)
        self.has_penalties_R, self.has_bias_R, self.wants_logprobs_R = np.zeros((3, self.num_rows), np.bool_)

    def load(self, start: RowStart, sampling: RowSampling) -> None:
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
        self.has_penalties_R[row], self.has_bias_R[row] = sampling.has_penalties, sampling.has_bias
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
        self._arrays.load(start, sampling)
        return row

    def note_bias(self, row: Row) -> None:
        """The row's bias has changed."""
        self._arrays.has_bias_R[row.start.row] = row.sampling.has_bias

    def row(self, index: int) -> Row:
        row = self.rows[index]
        assert row is not None, f"state row {index} was never started"
        return row

    def oversized_tables(self, output: SchedulerOutput) -> list[ScheduledRow]:
        """Rows with more new pages than their tokens account for (a prefix-cache hit): load their whole line."""
        return [
            row
            for row, mirror in self._with_new_pages(output.rows)
            if len(mirror.changed_columns(row.page_ids)) > len(row.token_ids) // self._page_size + 1
        ]

    def _with_new_pages(self, rows: list[ScheduledRow]) -> list[tuple[ScheduledRow, Row]]:
        """Rows whose table is not as the device has it; few in a step of decodes."""
        mirrors = [self.row(row.row) for row in rows]
        return [pair for pair in zip(rows, mirrors, strict=True) if pair[0].page_ids != pair[1].page_ids]

    def build(self, output: SchedulerOutput) -> PackedStep:
        """The packed inputs of this step, in the smallest bucket that holds it."""
        bucket = self._pick(len(output.rows), output.num_tokens)
        step = self.empty_step(bucket)
        self._fill_tokens(step, output.rows)
        self._fill_pages(step, output.rows)
        self._fill_sampling(step, output.rows)
        if self._config.check_inputs:
            check_step(step, output, self._config)
            self._check_pending(output.rows)
        return step

    def _check_pending(self, rows: list[ScheduledRow]) -> None:
        """Raise AssertionError where a row goes on with a token that its last step did not sample."""
        for row in rows:
            mirror = self.row(row.row)
            is_sampled = mirror.pending_position == row.start
            assert is_sampled or row.token_ids != [PENDING_TOKEN], f"{row.request_id}: nobody samples the pending token"
            mirror.pending_position = row.start + len(row.token_ids) if row.samples else None

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
        token_ids = np.array([token for row in rows for token in row.token_ids], np.int32)
        pending = np.flatnonzero(token_ids == PENDING_TOKEN)  # rows of one token come first: token i is row i's
        token_ids[pending] = [-1 - rows[i].row for i in pending]
        step["token_ids_T"][:total] = token_ids
        positions = np.arange(total, dtype=np.int32) + np.repeat(firsts - (ends - lengths), lengths)
        step["positions_T"][:total] = positions
        prompt_lens = np.array([row.num_prompt_tokens for row in rows], np.int32)
        step["rope_lens_T"][:total] = np.maximum(np.repeat(prompt_lens, lengths), positions + 1)
        step["slots_T"][:total] = _pages_of(rows, size) * size + positions % size
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
        for row, mirror in self._with_new_pages(rows):
            columns = mirror.changed_columns(row.page_ids)
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
        step["use_penalties"][...] = bool(arrays.has_penalties_R[sampling_rows].any())
        step["use_bias"][...] = bool(arrays.has_bias_R[sampling_rows].any())


def _pages_of(rows: list[ScheduledRow], page_size: int) -> np.ndarray:
    """The page id of each scheduled position of each row. Rows of one token come first, and are mostly all."""
    num_single = sum(len(row.token_ids) == 1 for row in rows)
    singles = [row.page_ids[row.start // page_size] for row in rows[:num_single]]
    chunks = [_pages_of_chunk(row, page_size) for row in rows[num_single:]]
    return np.concatenate([np.array(singles, np.int32), *chunks])


def _pages_of_chunk(row: ScheduledRow, page_size: int) -> np.ndarray:
    """A row of n tokens touches few pages, found by position."""
    first, stop = row.start, row.start + len(row.token_ids)
    begin = first // page_size
    touched = np.array(row.page_ids[begin : (stop - 1) // page_size + 1], np.int32)
    return touched[np.arange(first, stop) // page_size - begin]
