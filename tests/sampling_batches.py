"""Sampling batches for tests: from SamplingParams to the device's arrays, with padding."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from jaxserve.core.params import SamplingParams
from jaxserve.sampling.batch import SamplingBatch
from jaxserve.sampling.rows import RowSampling
from jaxserve.sampling.sampler import narrow, process, sample
from jaxserve.sampling.state import SamplingState, empty_state, load_row

sample_jit = jax.jit(sample, static_argnames="num_logprobs")
load_row_jit = jax.jit(load_row)
process_jit = jax.jit(process)
narrow_jit = jax.jit(narrow)


def make_batch(
    params: Sequence[SamplingParams],
    *,
    num_rows: int | None = None,
    state_rows: Sequence[int] | None = None,
    seeds: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    all_flags: bool = False,
) -> SamplingBatch:
    """One row a SamplingParams, padded to num_rows. Flags are what the rows need, or all True."""
    count = len(params)
    size = num_rows or count

    def pad(values: Iterable[float], dtype: type, fill: float = 0) -> Any:
        return np.array([*values, *[fill] * (size - count)], dtype)

    seeds = [p.seed or 0 for p in params] if seeds is None else seeds
    words = [[seed >> 32 & 0xFFFFFFFF, seed & 0xFFFFFFFF] for seed in seeds] + [[0, 0]] * (size - count)
    is_random = any(p.temperature > 0 for p in params)
    has_filters = any(p.top_p < 1 or p.top_k > 0 or p.min_p > 0 for p in params)
    has_penalties = any(p.repetition_penalty != 1 or p.presence_penalty or p.frequency_penalty for p in params)
    fields: dict[str, Any] = dict(
        rows_B=pad(range(count) if state_rows is None else state_rows, np.int32, 10_000),
        is_active_B=pad([1] * count, np.bool_),
        positions_B=pad([7] * count if positions is None else positions, np.int32),
        seeds_B2=np.array(words, np.uint32),
        temperature_B=pad([p.temperature for p in params], np.float32),
        top_p_B=pad([p.top_p for p in params], np.float32),
        top_k_B=pad([p.top_k for p in params], np.int32),
        min_p_B=pad([p.min_p for p in params], np.float32),
        repetition_B=pad([p.repetition_penalty for p in params], np.float32),
        presence_B=pad([p.presence_penalty for p in params], np.float32),
        frequency_B=pad([p.frequency_penalty for p in params], np.float32),
        use_random=np.bool_(is_random or all_flags),
        use_filters=np.bool_(has_filters or all_flags),
        use_penalties=np.bool_(has_penalties or all_flags),
        use_bias=np.bool_(
            any(p.logit_bias or p.allowed_token_ids or p.bad_words_token_ids or p.min_tokens for p in params)
            or all_flags
        ),
        use_logprobs=np.bool_(any(p.logprobs is not None for p in params) or all_flags),
    )
    return SamplingBatch(**fields)


def load(state: SamplingState, row: int, sampling: RowSampling) -> SamplingState:
    """What the engine does when a request enters a row."""
    zeros_V = np.zeros(state.bias_RV.shape[1], np.float32)
    bias_V = zeros_V if sampling.bias_V is None else sampling.bias_V
    counts_V = zeros_V.astype(np.int32) if sampling.counts_V is None else sampling.counts_V
    mask_V = zeros_V.astype(np.bool_) if sampling.prompt_mask_V is None else sampling.prompt_mask_V
    return load_row_jit(state, row, bias_V, counts_V, mask_V)


@functools.cache
def fresh_state(num_rows: int, vocab_size: int) -> SamplingState:
    return empty_state(num_rows, vocab_size)
