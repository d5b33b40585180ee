"""The Hopper decode kernel in Pallas' interpreter, with its race detector, against the plain definition.

What the interpreter cannot do is swapped for plain operations: products of tiles, the atomic counter of
parts, copies past an array's end. All else is the kernel's own: plan, copies, barriers, softmax, merging.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import make_case
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.mosaic_gpu.decode import decode_attention
from pallas_kernels.reference import plain_paged_attention
from pallas_kernels.tuning import DecodeConfig

SCALE = 0.3


def attend(lens: list[int], num_rows: int, num_workers: int, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """The kernel's result and the reference's, which is in float32."""
    shape: dict[str, Any] = dict(page_size=16, heads=4, kv_heads=2, head_dim=64)
    shape |= {name: options.pop(name) for name in shape.keys() & options.keys()}
    arrays, _ = make_case(
        [1] * len(lens), lens or [0], num_rows=num_rows, num_tokens=num_rows, dtype=jnp.bfloat16, **shape
    )
    q, pool, table, contexts, starts, counts = arrays
    options = {"sliding_window": None, "logit_softcap": None, "scale": SCALE} | options
    config = DecodeConfig(num_workers, 1, 2)
    with plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams(detect_races=True)):
        got = decode_attention(q, pool, table, contexts, config=config, interpret=True, **options)
    wide = q.astype(jnp.float32), pool.astype(jnp.float32)
    want = plain_paged_attention(*wide, table, contexts, starts, counts, **options)
    return np.asarray(got, np.float32), np.asarray(want)


@pytest.mark.parametrize(
    ("lens", "num_workers", "options"),
    [
        ([1], 1, {}),
        ([100, 3], 3, {}),
    ],
    ids=str,
)
def test_like_the_definition(lens: list[int], num_workers: int, options: dict[str, Any]) -> None:
    got, want = attend(lens, len(lens) + 1, num_workers, **options)
    np.testing.assert_allclose(got[: len(lens)], want[: len(lens)], atol=2e-2)
    assert not got[len(lens) :].any()
