"""The Hopper prefill kernel in Pallas' interpreter, with its race detector, against the plain definition.

What the interpreter cannot do, products of tiles, is swapped for plain ones. All else is the kernel's own:
plan, copies, barriers, turns, softmax, stores.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import make_case
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.mosaic_gpu.prefill import prefill_attention
from pallas_kernels.reference import plain_paged_attention
from pallas_kernels.tuning import PrefillConfig

# Lengths of queries and contexts, workers, options. Pages outside the table and past a row's end hold NaN.
CASES: dict[str, tuple[list[int], list[int], int, dict[str, Any]]] = {
    "a_short_chunk": ([5], [5], 2, {}),
    "chunks_after_single_queries": ([1, 1, 70, 20], [30, 9, 200, 20], 3, {}),
    "pages_of_16": ([70], [150], 2, {"page_size": 16}),
    "a_worker_many_tiles": ([130, 40], [300, 40], 1, {}),
    "heads_not_in_pairs": ([150], [200], 2, {"heads": 2}),
    "window": ([100], [300], 2, {"sliding_window": 50}),
    "e4m3": ([1, 70, 20], [30, 200, 20], 2, {"page_size": 16, "pool_dtype": jnp.float8_e4m3fn}),
    "e5m2_many_tiles": ([130, 40], [300, 40], 1, {"pool_dtype": jnp.float8_e5m2, "dtype": jnp.float16}),
    "e4m3_wide_heads": ([70], [200], 1, {"pool_dtype": jnp.float8_e4m3fn, "head_dim": 256}),
    "cap": ([70], [90], 2, {"logit_softcap": 5.0}),
}


@pytest.mark.parametrize("name", CASES)
def test_like_the_definition_and_free_of_races(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    query_lens, context_lens, num_workers, options = CASES[name]
    shape: dict[str, Any] = dict(page_size=64, heads=4, kv_heads=2, head_dim=64, dtype=jnp.bfloat16, pool_dtype=None)
    options = {"sliding_window": None, "logit_softcap": None, "scale": 0.3} | options
    shape |= {name: options.pop(name) for name in shape.keys() & options.keys()}
    num_tokens = -(-(sum(query_lens) + 5) // 8) * 8
    arrays, used = make_case(query_lens, context_lens, num_rows=len(query_lens) + 1, num_tokens=num_tokens, **shape)
    with plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams(detect_races=True)):
        got = prefill_attention(*arrays, config=PrefillConfig(num_workers, 2), interpret=True, **options)
    q, pool, *rest = arrays
    want = plain_paged_attention(q.astype(jnp.float32), pool.astype(jnp.float32), *rest, **options)
    first = sum(n for n in query_lens if n == 1)
    np.testing.assert_allclose(np.asarray(got, np.float32)[first:used], np.asarray(want)[first:used], atol=2e-2)
    assert not np.asarray(got, np.float32)[used:].any()
    for race in capfd.readouterr().out.split("RACE DETECTED")[1:]:
        # Both warpgroups clear the same values beyond a row's end, to the same zeros.
        assert "_clear_beyond" in race, race
