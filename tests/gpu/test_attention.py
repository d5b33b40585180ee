"""The GPU backends against the plain definition in float32, over the whole contract."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import CASES, make_case

from pallas_kernels import ragged_paged_attention
from pallas_kernels.jax_triton.door import capability_of, missing_on

ROWS: dict[str, list[int]] = {
    "one_key": [1],
    "tile_borders": [1, 63, 64, 65, 127, 128, 129, 1000],
    "one_long_many_short": [9000, 1, 2, 3, 500],
    "a_worker_many_heads": [70] * 40,
    "thirty_two_thousand": [32768, 3],
}


@pytest.fixture(params=["mosaic_gpu", "jax_triton"])
def implementation(request: pytest.FixtureRequest) -> str:
    device = jax.devices()[0]
    if request.param == "mosaic_gpu" and getattr(device, "compute_capability", None) != "9.0":
        pytest.skip("needs a GPU of compute capability 9.0")
    if request.param == "jax_triton" and (reason := missing_on(device)):
        pytest.skip(reason)
    return request.param


def compare(
    implementation: str, arrays: Any, used: int, head_dim: int, judge: str = "reference", **options: Any
) -> None:
    q, pool, *rest = arrays
    options = {"scale": head_dim**-0.5} | options
    got = ragged_paged_attention(*arrays, implementation=implementation, **options)
    wide = (q.astype(jnp.float32), pool.astype(jnp.float32), *rest)
    want = np.asarray(ragged_paged_attention(*wide, implementation=judge, **options))[:used]
    assert got.dtype == q.dtype and np.isfinite(np.asarray(got, np.float32)).all()
    np.testing.assert_allclose(np.asarray(got, np.float32)[:used], want, atol=2e-2)
    assert np.linalg.norm(np.asarray(got, np.float32)[:used] - want) <= 4e-3 * np.linalg.norm(want)


def decode_case(lens: list[int], num_padding: int = 0, **shape: Any) -> tuple[Any, int]:
    rows = len(lens) + num_padding
    defaults: dict[str, Any] = dict(page_size=64, head_dim=128, heads=8, kv_heads=2, dtype=jnp.bfloat16)
    return make_case([1] * len(lens), lens, num_rows=rows, num_tokens=rows, **(defaults | shape))


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("options", [{}, {"sliding_window": 100}, {"logit_softcap": 20.0}], ids=str)
def test_rows_of_one_query(implementation: str, name: str, options: dict[str, Any]) -> None:
    compare(implementation, *decode_case(ROWS[name], num_padding=3), 128, **options)


@pytest.mark.parametrize("page_size", [16, 32, 64, 128])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_page_sizes_and_dtypes(implementation: str, page_size: int, dtype: Any) -> None:
    lens = [1, page_size - 1, page_size, page_size + 1, 777]
    compare(implementation, *decode_case(lens, page_size=page_size, dtype=dtype), 128)


@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 8), (8, 4), (8, 1), (16, 1), (9, 3), (32, 8)])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_head_layouts(implementation: str, heads: int, kv_heads: int, head_dim: int) -> None:
    compare(implementation, *decode_case([5, 300, 2000], heads=heads, kv_heads=kv_heads, head_dim=head_dim), head_dim)


@pytest.mark.parametrize("name", ["prompt_whole", "prompt_chunk", "mixed"])
def test_prompt_chunks_beside_single_queries(implementation: str, name: str) -> None:
    compare(implementation, *make_case(**CASES[name], heads=8, kv_heads=2, head_dim=128, dtype=jnp.bfloat16), 128)


# What follows only jax_triton takes.


@pytest.fixture
def triton() -> str:
    if reason := missing_on(jax.devices()[0]):
        pytest.skip(reason)
    return "jax_triton"


@pytest.mark.parametrize("window", [None, 6, 70])
@pytest.mark.parametrize("name", CASES)
def test_float32_and_odd_pages(triton: str, name: str, window: int | None) -> None:
    arrays, used = make_case(**CASES[name])
    want = ragged_paged_attention(*arrays, scale=0.25, sliding_window=window, implementation="reference")
    got = ragged_paged_attention(*arrays, scale=0.25, sliding_window=window, implementation=triton)
    assert np.isfinite(np.asarray(got)).all()
    np.testing.assert_allclose(got[:used], want[:used], atol=3e-6)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(8, 1, 80), (16, 1, 96), (32, 1, 128), (6, 2, 16), (6, 2, 32)]
)
@pytest.mark.parametrize("options", [{}, {"sliding_window": 50, "logit_softcap": 20.0}], ids=str)
def test_odd_heads(triton: str, heads: int, kv_heads: int, head_dim: int, options: dict[str, Any]) -> None:
    shape: dict[str, Any] = dict(heads=heads, kv_heads=kv_heads, head_dim=head_dim, dtype=jnp.bfloat16)
    compare(triton, *make_case(**CASES["mixed"], **shape), head_dim, **options)


@pytest.mark.parametrize("num_tokens", [512, 4096])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("options", [{}, {"sliding_window": 100}, {"logit_softcap": 20.0}], ids=str)
def test_long_prompt_chunks(triton: str, num_tokens: int, head_dim: int, options: dict[str, Any]) -> None:
    """Enough queries for the larger operands, and too many for the plain definition's memory."""
    lens = [1, 1, 300, num_tokens - 400]
    contexts = [700, 3, 300, num_tokens]
    shape: dict[str, Any] = dict(heads=16, kv_heads=4, head_dim=head_dim, dtype=jnp.bfloat16)
    case = make_case(lens, contexts, num_rows=8, num_tokens=num_tokens, page_size=64, **shape)
    compare(triton, *case, head_dim, judge="xla", **options)


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2])
def test_float8_pool(triton: str, dtype: Any) -> None:
    if (capability_of(jax.devices()[0]) or 0) < 89:
        pytest.skip("needs a GPU of compute capability 8.9")
    shape: dict[str, Any] = dict(heads=8, kv_heads=2, head_dim=128, dtype=jnp.bfloat16)
    (q, pool, *rest), used = make_case(**CASES["mixed"], **shape)
    compare(triton, (q, pool.astype(dtype), *rest), used, 128)
