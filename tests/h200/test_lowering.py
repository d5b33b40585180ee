"""Kernels lowered for CUDA by any JAX: layouts, shared memory and shapes are checked without a CUDA compiler."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import ragged_paged_attention

# Every page size with every head size; the other options take turns.
_MATRIX = itertools.product((16, 32, 64, 128), (64, 128, 256))
_TURNS = zip(
    itertools.cycle((jnp.bfloat16, jnp.float16)),
    itertools.cycle((1, 4, 7, 8, 16)),
    itertools.cycle((None, 1, 100)),
    itertools.cycle((None, 30.0)),
    itertools.cycle((3, 70, 200)),
    strict=False,
)
CASES = [(*each, *turn) for each, turn in zip(_MATRIX, _TURNS, strict=False)]
_POOLS = (None, jnp.float8_e4m3fn, jnp.float8_e5m2)  # None: the queries' dtype


@pytest.mark.parametrize("pool_dtype", _POOLS, ids=str)
@pytest.mark.parametrize(("page_size", "head_dim", "dtype", "group", "window", "softcap", "num_rows"), CASES)
def test_the_contract_lowers(page_size, head_dim, dtype, group, window, softcap, num_rows, pool_dtype):
    attend = partial(
        ragged_paged_attention,
        scale=head_dim**-0.5,
        sliding_window=window,
        logit_softcap=softcap,
        implementation="mosaic_gpu",
    )

    def spec(*shape, dtype=jnp.int32):
        return jax.ShapeDtypeStruct(shape, dtype)

    traced = jax.jit(attend).trace(
        spec(num_rows, 2 * group, head_dim, dtype=dtype),
        spec(40, 2, 2, page_size, head_dim, dtype=pool_dtype or dtype),
        spec(num_rows, 9),
        spec(num_rows),
        spec(num_rows + 1),
        spec(2),
    )
    assert "mosaic_gpu" in traced.lower(lowering_platforms=("cuda",)).as_text()
