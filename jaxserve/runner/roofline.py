"""The least time a step can take: bytes that must be moved and operations that must be done, at a device's peaks.

Kernels run one after another, each at its own limit: a step is the matrices' time plus attention's, each the larger
of bytes / bandwidth and FLOP / rate. Launches, norms, sampling, the scheduler and everything else are not counted,
so these are floors: predictions from shapes, never measurements. Of a mixture of experts a token computes with those
it picks, and a step reads as many as its tokens pick if all experts are as likely; real routers are less even and
read fewer.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from jaxserve.core.config import ModelConfig, PoolConfig
from jaxserve.runner.memory import dense_matrix_parameters, dtype_bytes, expert_parameters
from jaxserve.schedule.output import ScheduledRow, SchedulerOutput
from sharding.targets.peaks import Peaks


@dataclass(frozen=True, slots=True)
class Rates:
    """bandwidth: bytes a second; flops: additions and multiplications a second, in the model's dtype."""

    bandwidth: float
    flops: float

    def time_s(self, num_bytes: float, num_flops: float) -> float:
        """The least time of a kernel that must move so much and compute so much."""
        return max(num_bytes / self.bandwidth, num_flops / self.flops)


def rates_of(peaks: Peaks, dtype: str) -> Rates | None:
    """What a device can do at most with a model of this dtype; None where one of the two rates is unknown."""
    tflops = peaks.tflops if dtype != "float32" or peaks.tflops_float32 is None else peaks.tflops_float32
    return None if peaks.bandwidth is None or tflops is None else Rates(peaks.bandwidth, tflops * 1e12)


@dataclass(slots=True)
class StepCost:
    """What a step must move and compute, and the least seconds that takes.

    read_bytes: weights once, and the keys and values that queries see; write_bytes: new keys and values.
    memory_s, compute_s: floors of the kernels that bytes limit and of those that operations limit, one after the
    other; both 0 where the device's rates are unknown.
    """

    read_bytes: int = 0
    write_bytes: int = 0
    flops: int = 0
    memory_s: float = 0.0
    compute_s: float = 0.0

    @property
    def floor_s(self) -> float:
        return self.memory_s + self.compute_s

    def add(self, num_bytes: int, num_flops: int, rates: Rates | None) -> None:
        """One more kernel that reads so much and computes so much."""
        self.read_bytes += num_bytes
        self.flops += num_flops
        if rates is not None:
            memory_s, compute_s = num_bytes / rates.bandwidth, num_flops / rates.flops
            if memory_s >= compute_s:
                self.memory_s += memory_s
            else:
                self.compute_s += compute_s


class StepCosts:
    """Costs of a model's steps, from the same sums as `decode_s` and `prefill_s`: microseconds a step.

    itemsize: bytes of a number of the matrices. A row of one token is taken to sample; the logits of prompt
    log probabilities are not counted.
    """

    def __init__(self, model: ModelConfig, pool: PoolConfig, rates: Rates | None, *, itemsize: int) -> None:
        self.rates = rates
        self._model = model
        self._used = matrices_used(model)
        self._head = _head_parameters(model)
        self._itemsize = itemsize
        self._kv_bytes, self._flops = _kv_bytes(model, pool), _attention_flops(model)
        self._num_layers = model.num_layers
        self._windows = list(_windows(model).items())

    def of(self, scheduled: SchedulerOutput) -> StepCost:
        """What this step costs at least."""
        rows, cost = scheduled.rows, StepCost()
        num_single = len(rows)  # rows of one token come first
        while num_single and len(rows[num_single - 1].token_ids) > 1:
            num_single -= 1
        chunks = rows[num_single:]
        num_sampled = num_single + sum(row.samples for row in chunks)
        cost.write_bytes = scheduled.num_tokens * self._num_layers * self._kv_bytes
        num_read = matrices_read(self._model, scheduled.num_tokens)
        cost.add(num_read * self._itemsize, 2 * self._used * scheduled.num_tokens, self.rates)
        if num_sampled:
            cost.add(self._head * self._itemsize, 2 * self._head * num_sampled, self.rates)
        if num_single:
            self._add_single(cost, [row.start for row in rows[:num_single]])
        if chunks:
            self._add_chunks(cost, chunks)
        return cost

    def _add_single(self, cost: StepCost, starts: list[int]) -> None:
        """Attention of one query a row: it sees the `start` tokens before it and itself, or a window of them."""
        total = sum(starts) + len(starts)
        for window, num_layers in self._windows:
            seen = total if window is None else int(np.minimum(np.array(starts) + 1, window).sum())
            cost.add(num_layers * seen * self._kv_bytes, num_layers * seen * self._flops, self.rates)

    def _add_chunks(self, cost: StepCost, chunks: list[ScheduledRow]) -> None:
        """Attention of several queries a row: it reads once what any of them sees."""
        starts = np.array([row.start for row in chunks])
        lens = np.array([len(row.token_ids) for row in chunks])
        stops = starts + lens
        for window, num_layers in self._windows:
            if window is None:
                read, pairs = int(stops.sum()), int((lens * (starts + stops + 1)).sum()) // 2
            else:
                read = int(np.minimum(stops, lens + (window - 1)).sum())
                pairs = int((_pairs_in(stops, window) - _pairs_in(starts, window)).sum())
            cost.add(num_layers * read * self._kv_bytes, num_layers * pairs * self._flops, self.rates)


def decode_s(
    model: ModelConfig, pool: PoolConfig, rates: Rates, *, num_rows: int, context_len: int, itemsize: int
) -> float:
    """Seconds of a step that gives each of num_rows requests of context_len tokens its next token.

    itemsize: bytes of a number of the matrices.
    """
    head = _head_parameters(model)
    read, used = matrices_read(model, num_rows) + head, matrices_used(model) + head
    seen = sum(count * min(context_len, window or context_len) for window, count in _windows(model).items())
    kv_bytes = num_rows * seen * _kv_bytes(model, pool)
    attention = rates.time_s(kv_bytes, num_rows * seen * _attention_flops(model))
    return rates.time_s(read * itemsize, 2 * used * num_rows) + attention


def prefill_s(
    model: ModelConfig, pool: PoolConfig, rates: Rates, *, num_tokens: int, chunk: int, itemsize: int
) -> float:
    """Seconds from a prompt's start to its first token, alone, in chunks of at most `chunk` tokens."""
    used, head = matrices_used(model), _head_parameters(model)
    total = rates.time_s(head * itemsize, 2 * head)  # the last token's logits alone
    for start in range(0, num_tokens, chunk):
        stop = min(start + chunk, num_tokens)
        read = matrices_read(model, stop - start)
        total += rates.time_s(read * itemsize, 2 * used * (stop - start))
        for window, count in _windows(model).items():
            pairs = _pairs(stop, window) - _pairs(start, window)
            read = stop if window is None else min(stop, stop - start + window - 1)
            total += count * rates.time_s(read * _kv_bytes(model, pool), pairs * _attention_flops(model))
    return total


def matrices_used(model: ModelConfig) -> int:
    """Weights of the layers' matrices that one token is multiplied with."""
    picked = model.num_experts_per_tok * expert_parameters(model) // model.num_expert_shards
    return dense_matrix_parameters(model) + picked


def matrices_read(model: ModelConfig, num_tokens: int) -> int:
    """Weights of the layers' matrices that a step of so many tokens reads: of experts the expected number."""
    if not model.num_experts:
        return dense_matrix_parameters(model)
    missed = (1 - model.num_experts_per_tok / (model.num_experts * model.num_expert_shards)) ** num_tokens
    return dense_matrix_parameters(model) + round(model.num_experts * (1 - missed) * expert_parameters(model))


def _windows(model: ModelConfig) -> Counter[int | None]:
    """How many layers look back how far."""
    return Counter(model.sliding_windows or (None,) * model.num_layers)


def _head_parameters(model: ModelConfig) -> int:
    return model.vocab_size * model.hidden_size


def _kv_bytes(model: ModelConfig, pool: PoolConfig) -> int:
    """Key and value of one token in one layer."""
    return 2 * model.num_kv_heads * pool.head_dim * dtype_bytes(pool.dtype)


def _attention_flops(model: ModelConfig) -> int:
    """Of one query token and one key in one layer: a product with the key and one with the value."""
    return 4 * model.num_heads * model.head_dim


def _pairs_in(num_tokens: np.ndarray, window: int) -> np.ndarray:
    """`_pairs` of several lengths."""
    full = np.minimum(num_tokens, window)
    return full * (full + 1) // 2 + (num_tokens - full) * window


def _pairs(num_tokens: int, window: int | None) -> int:
    """Query and key pairs of a causal sequence; a query sees itself and at most window - 1 before it."""
    full = num_tokens if window is None else min(num_tokens, window)
    return full * (full + 1) // 2 + (num_tokens - full) * full
