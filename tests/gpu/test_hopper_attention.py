"""The Hopper backend against the plain definition in float32, over the whole contract."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import CASES, make_case

from pallas_kernels import ragged_paged_attention

ROWS: dict[str, list[int]] = {
    "one_key": [1],
    "tile_borders": [1, 63, 64, 65, 127, 128, 129, 1000],
    "one_long_many_short": [9000, 1, 2, 3, 500],
    "a_worker_many_heads": [70] * 40,
    "thirty_two_thousand": [32768, 3],
}


@pytest.fixture(autouse=True)
def _hopper() -> None:
    if getattr(jax.devices()[0], "compute_capability", None) != "9.0":
        pytest.skip("needs a GPU of compute capability 9.0")


def compare(arrays: Any, used: int, head_dim: int, **options: Any) -> None:
    q, pool, *rest = arrays
    options = {"scale": head_dim**-0.5} | options
    got = ragged_paged_attention(*arrays, implementation="mosaic_gpu", **options)
    wide = (q.astype(jnp.float32), pool.astype(jnp.float32), *rest)
    want = np.asarray(ragged_paged_attention(*wide, implementation="reference", **options))[:used]
    assert got.dtype == q.dtype and np.isfinite(np.asarray(got, np.float32)).all()
    np.testing.assert_allclose(np.asarray(got, np.float32)[:used], want, atol=2e-2)
    assert np.linalg.norm(np.asarray(got, np.float32)[:used] - want) <= 4e-3 * np.linalg.norm(want)


def decode_case(lens: list[int], num_padding: int = 0, **shape: Any) -> tuple[Any, int]:
    rows = len(lens) + num_padding
    defaults: dict[str, Any] = dict(page_size=64, head_dim=128, heads=8, kv_heads=2, dtype=jnp.bfloat16)
    return make_case([1] * len(lens), lens, num_rows=rows, num_tokens=rows, **(defaults | shape))


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("options", [{}, {"sliding_window": 100}, {"logit_softcap": 20.0}], ids=str)
def test_rows_of_one_query(name: str, options: dict[str, Any]) -> None:
    compare(*decode_case(ROWS[name], num_padding=3), 128, **options)


@pytest.mark.parametrize("page_size", [16, 32, 64, 128])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_page_sizes_and_dtypes(page_size: int, dtype: Any) -> None:
    lens = [1, page_size - 1, page_size, page_size + 1, 777]
    compare(*decode_case(lens, page_size=page_size, dtype=dtype), 128)


@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 8), (8, 4), (8, 1), (16, 1), (9, 3), (32, 8)])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_head_layouts(heads: int, kv_heads: int, head_dim: int) -> None:
    compare(*decode_case([5, 300, 2000], heads=heads, kv_heads=kv_heads, head_dim=head_dim), head_dim)


@pytest.mark.parametrize("name", ["prompt_whole", "prompt_chunk", "mixed"])
def test_prompt_chunks_beside_single_queries(name: str) -> None:
    compare(*make_case(**CASES[name], heads=8, kv_heads=2, head_dim=128, dtype=jnp.bfloat16), 128)
