"""The Hopper decode kernel in Pallas' interpreter, with its race detector, against the plain definition.

What the interpreter cannot do is swapped for plain operations: products of tiles, the atomic counter of
parts, copies past an array's end. All else is the kernel's own: plan, copies, barriers, softmax, merging.
Workers run one after another here, so the order in which parts arrive is always the same.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import make_case
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.mosaic_gpu.decode import decode_attention
from pallas_kernels.reference import plain_paged_attention
from pallas_kernels.tuning import DecodeConfig

# lens, rows without a context after them, workers, options. Pages outside the table and past a row's end hold NaN.
CASES: dict[str, tuple[list[int], int, int, dict[str, Any]]] = {
    "one_key": ([1], 0, 1, {}),
    "ragged_in_pages_of_16": ([100, 3, 64, 65], 2, 3, {}),
    "pages_of_64": ([130, 1, 63], 1, 4, {"page_size": 64}),
    "pages_of_128": ([130, 257], 0, 3, {"page_size": 128}),
    "window": ([300, 70, 5], 1, 3, {"sliding_window": 90}),
    "cap": ([90, 20], 0, 2, {"logit_softcap": 5.0}),
    "heads_in_two_and_three_parts": ([200, 190], 0, 7, {}),
    "a_head_in_twenty_parts": ([1270], 1, 20, {"kv_heads": 1, "page_size": 64}),
    "more_workers_than_tiles": ([10, 70], 3, 9, {}),
    "a_group_of_one": ([70, 200], 1, 3, {"heads": 2}),  # too small for 128 threads: padded
    "a_group_of_twelve": ([70, 200], 1, 3, {"heads": 12, "kv_heads": 1}),  # no whole tiles of 8: padded
    "e4m3": ([100, 3, 64, 65], 2, 3, {"pool_dtype": jnp.float8_e4m3fn}),
    "e5m2_in_parts": ([200, 190], 0, 7, {"pool_dtype": jnp.float8_e5m2, "page_size": 64}),
    "e4m3_float16": ([130, 257], 1, 3, {"pool_dtype": jnp.float8_e4m3fn, "dtype": jnp.float16, "head_dim": 128}),
    "all_rows_idle": ([], 3, 4, {}),
}


def attend(lens: list[int], num_idle: int, num_workers: int, **options: Any) -> tuple[np.ndarray, np.ndarray, Any]:
    """The kernel's result, the reference's in float32, and the counters after the call."""
    shape: dict[str, Any] = dict(page_size=16, heads=4, kv_heads=2, head_dim=64, dtype=jnp.bfloat16, pool_dtype=None)
    shape |= {name: options.pop(name) for name in shape.keys() & options.keys()}
    rows = len(lens) + num_idle
    arrays, _ = make_case([1] * len(lens), lens or [0], num_rows=rows, num_tokens=rows, **shape)
    q, pool, table, contexts, starts, counts = arrays
    options = {"sliding_window": None, "logit_softcap": None, "scale": 0.3} | options
    workspace = jax.new_ref(jnp.zeros(num_workers, jnp.int32))
    with plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams(detect_races=True)):
        got = decode_attention(
            q,
            pool,
            table,
            contexts,
            config=DecodeConfig(num_workers, 1, 2),
            workspace=workspace,
            interpret=True,
            **options,
        )
    wide = q.astype(jnp.float32), pool.astype(jnp.float32)
    want = plain_paged_attention(*wide, table, contexts, starts, counts, **options)
    return np.asarray(got, np.float32), np.asarray(want), jax.freeze(workspace)


@pytest.mark.parametrize("name", CASES)
def test_like_the_definition_and_free_of_races(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    lens, num_idle, num_workers, options = CASES[name]
    got, want, counters = attend(lens, num_idle, num_workers, **options)
    np.testing.assert_allclose(got[: len(lens)], want[: len(lens)], atol=2e-2)
    assert not got[len(lens) :].any()
    assert not counters.any()  # as the next layer needs them
    for race in capfd.readouterr().out.split("RACE DETECTED")[1:]:
        # Parts change hands by the counter, whose atomic order the interpreter does not see.
        assert race.count("decode_merge.py") == 2, race
