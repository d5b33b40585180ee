"""What 8-bit keys and values cost: the engine's log probabilities against transformers' float32 logits.

The differences are what rounding to three (fp8_e4m3) or two (fp8_e5m2) bits of fraction makes of a small
random model, whose attention is sharper than a trained one's. Measured 2026-11-24 as root mean square over the
spread of the golden log probabilities: float32 0.00000, float16 0.0005, fp8_e4m3 0.077 to 0.087 whatever the
fitting scales, fp8_e5m2 0.146. Scales left out at the write, at the read, at the keys or at the values, or taken
the wrong way round, gave 0.82 to 1.40; keys' and values' exchanged 0.43 and 1.08.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from engine_driver import Driver, Wish, make_engine
from golden_cases import GOLDENS, overrides, prompts
from random_checkpoint import add_tensors

from jaxserve.core.params import SamplingParams

CASE, NUM_LAYERS, NUM_PROMPTS = "llama2_gqa2", 2, 4  # golden rows are of the first four prompts


@pytest.mark.parametrize(
    ("kv_cache_dtype", "key_scale", "value_scale", "least", "most"),
    [
        ("auto", 0.03, 5.0, 0.0, 1e-4),  # scales are for 8 bits only
        ("float16", 1.0, 1.0, 1e-4, 2e-3),
        ("fp8", None, None, 0.02, 0.12),
        ("fp8_e4m3", 0.03, 0.02, 0.02, 0.12),
        ("fp8_e4m3", 8.0, 0.01, 0.02, 0.12),
        ("fp8_e5m2", 1e-3, 1e-3, 0.04, 0.24),
    ],
)
def test_log_probabilities_stay_close(
    make_tiny_checkpoint: Callable[..., Path],
    kv_cache_dtype: str,
    key_scale: float | None,
    value_scale: float,
    least: float,
    most: float,
) -> None:
    golden = np.load(GOLDENS / f"{CASE}.npz", allow_pickle=False)
    path = make_tiny_checkpoint(**overrides(CASE))
    if key_scale is not None:
        sides = (("k", key_scale), ("v", value_scale))
        layers = [f"model.layers.{i}.self_attn." for i in range(NUM_LAYERS)]
        add_tensors(path, {f"{p}{s}_proj.{s}_scale": x * (i + 1) for i, p in enumerate(layers) for s, x in sides})
    sequences = [p + t.tolist() for p, t in zip(prompts(CASE), golden["tokens_PG"], strict=True)][:NUM_PROMPTS]
    rows = prompt_logprobs(path, sequences, kv_cache_dtype)
    got_RV = np.array([rows[i][position] for i, position in golden["row_index_R2"]])
    want_RV = golden["rows_RV"] - np.logaddexp.reduce(golden["rows_RV"], axis=-1, keepdims=True)
    error = np.sqrt(np.mean((got_RV - want_RV) ** 2)) / want_RV.std()
    print(f"{kv_cache_dtype} {key_scale} {value_scale}: {error:.5f}")
    assert least <= error <= most


def prompt_logprobs(path: Path, sequences: list[list[int]], kv_cache_dtype: str) -> list[np.ndarray]:
    """Of each sequence [positions, V]: the log probabilities of what follows each token."""
    limits = dict(max_num_seqs=4, max_num_batched_tokens=16, max_model_len=128, kv_cache_memory_bytes=1 << 20)
    core = make_engine(path, **limits, max_logprobs=-1, kv_cache_dtype=kv_cache_dtype)
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=-1)
    rows: list[np.ndarray] = []
    for answer in Driver(core).run([Wish(sequence, params) for sequence in sequences]):
        rows.append(np.empty((len(answer.prompt_logprobs), core.config.model.vocab_size)))
        for row_V, entry in zip(rows[-1], answer.prompt_logprobs, strict=True):
            row_V[entry.top_ids] = entry.top_logprobs
    return rows
