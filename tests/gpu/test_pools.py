"""Pools unlike the queries on a GPU: 8 bits with scales, heads padded to a size that the kernel takes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import CASES, dequantised, head_scales, make_case

from pallas_kernels import ragged_paged_attention, write_kv


def close(got: Any, want: Any, used: int) -> None:
    got, want = np.asarray(got, np.float32), np.asarray(want)[:used]
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got[:used], want, atol=2e-2)
    assert np.linalg.norm(got[:used] - want) <= 4e-3 * np.linalg.norm(want)


@pytest.mark.parametrize("implementation", ["mosaic_gpu", "jax_triton", "xla"], indirect=True)
@pytest.mark.parametrize(("head_dim", "wider"), [(80, 128), (96, 128), (32, 64), (192, 256)])
@pytest.mark.parametrize("name", ["decode_page_borders", "mixed"])
def test_wider_heads(name: str, head_dim: int, wider: int, implementation: str) -> None:
    shape = {"heads": 8, "kv_heads": 2, "head_dim": head_dim, "pool_head_dim": wider, "dtype": jnp.bfloat16}
    (q, pool, *rest), used = make_case(**CASES[name], **shape)
    wide = (q.astype(jnp.float32), pool.astype(jnp.float32), *rest)
    want = ragged_paged_attention(*wide, scale=head_dim**-0.5, implementation="reference")
    close(ragged_paged_attention(q, pool, *rest, scale=head_dim**-0.5, implementation=implementation), want, used)


@pytest.mark.parametrize("implementation", ["mosaic_gpu", "jax_triton", "xla", "auto"], indirect=True)
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("pool_dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2])
@pytest.mark.parametrize("name", ["decode_page_borders", "mixed"])
def test_8_bits_with_scales(name: str, pool_dtype: Any, head_dim: int, implementation: str) -> None:
    scales = head_scales(2)
    shape = {"heads": 8, "kv_heads": 2, "head_dim": head_dim, "dtype": jnp.bfloat16, "pool_dtype": pool_dtype}
    arrays, used = make_case(**CASES[name], **shape, pool_scale_2K=scales)
    want = ragged_paged_attention(*dequantised(arrays, scales), scale=0.1, implementation="reference")
    got = ragged_paged_attention(*arrays, pool_scale_2K=scales, scale=0.1, implementation=implementation)
    close(got, want, used)


@pytest.mark.parametrize("pool_dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2])
def test_8_bits_are_rounded_as_on_a_cpu(pool_dtype: Any) -> None:
    """Numbers of every size, halfway cases among them, too large ones too."""
    exact = jnp.ldexp(1.0 + jnp.arange(64) / 64, jnp.arange(-24, 20)[:, None]).reshape(-1, 1, 8)
    k, slots = exact.astype(jnp.float32), jnp.arange(exact.shape[0])
    pool = jnp.zeros((len(slots), 2, 1, 1, 8), pool_dtype)
    scales = jnp.array([[1.0], [0.5]])
    got = jax.jit(write_kv)(pool, k, -k, slots, scales)
    largest = float(jnp.finfo(pool_dtype).max)
    for which, scale, sign in ((0, 1.0, 1), (1, 0.5, -1)):
        want = np.clip(sign * np.asarray(k)[:, 0] / np.float32(scale), -largest, largest).astype(got.dtype)
        np.testing.assert_array_equal(np.asarray(got)[:, which, 0, 0].astype(np.float32), want.astype(np.float32))
