"""The least time a step can take: bytes that must be moved and operations that must be done, at a device's peaks.

Kernels run one after another, each at its own limit: a step is the matrices' time plus attention's, each the larger
of bytes / bandwidth and FLOP / rate. Launches, norms, sampling, the scheduler and everything else are not counted,
so these are floors: predictions from shapes, never measurements.
"""

from collections import Counter
from dataclasses import dataclass

from jaxserve.core.config import ModelConfig, PoolConfig
from jaxserve.runner.memory import dtype_bytes, layer_matrix_parameters


@dataclass(frozen=True, slots=True)
class Rates:
    """bandwidth: bytes a second; flops: additions and multiplications a second, in the model's dtype."""

    bandwidth: float
    flops: float

    def time_s(self, num_bytes: float, num_flops: float) -> float:
        """The least time of a kernel that must move so much and compute so much."""
        return max(num_bytes / self.bandwidth, num_flops / self.flops)


def decode_s(
    model: ModelConfig, pool: PoolConfig, rates: Rates, *, num_rows: int, context_len: int, itemsize: int
) -> float:
    """Seconds of a step that gives each of num_rows requests of context_len tokens its next token.

    itemsize: bytes of a number of the matrices.
    """
    matrices = model.num_layers * layer_matrix_parameters(model) + _head_parameters(model)
    seen = sum(count * min(context_len, window or context_len) for window, count in _windows(model).items())
    kv_bytes = num_rows * seen * _kv_bytes(model, pool)
    attention = rates.time_s(kv_bytes, num_rows * seen * _attention_flops(model))
    return rates.time_s(matrices * itemsize, 2 * matrices * num_rows) + attention


def prefill_s(
    model: ModelConfig, pool: PoolConfig, rates: Rates, *, num_tokens: int, chunk: int, itemsize: int
) -> float:
    """Seconds from a prompt's start to its first token, alone, in chunks of at most `chunk` tokens."""
    matrices, head = model.num_layers * layer_matrix_parameters(model), _head_parameters(model)
    total = rates.time_s(head * itemsize, 2 * head)  # the last token's logits alone
    for start in range(0, num_tokens, chunk):
        stop = min(start + chunk, num_tokens)
        total += rates.time_s(matrices * itemsize, 2 * matrices * (stop - start))
        for window, count in _windows(model).items():
            pairs = _pairs(stop, window) - _pairs(start, window)
            read = stop if window is None else min(stop, stop - start + window - 1)
            total += count * rates.time_s(read * _kv_bytes(model, pool), pairs * _attention_flops(model))
    return total


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


def _pairs(num_tokens: int, window: int | None) -> int:
    """Query and key pairs of a causal sequence; a query sees itself and at most window - 1 before it."""
    full = num_tokens if window is None else min(num_tokens, window)
    return full * (full + 1) // 2 + (num_tokens - full) * full
