"""The Hopper backend against the plain definition in float32, over the whole contract."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import CASES, make_case

from pallas_kernels import attention_workspace, ragged_paged_attention

ROWS: dict[str, list[int]] = {
    "one_key": [1],
    "tile_borders": [1, 63, 64, 65, 127, 128, 129, 1000],
    "one_long_many_short": [9000, 1, 2, 3, 500],
    "a_worker_many_heads": [70] * 40,
    "thirty_two_thousand": [32768, 3],
    "heads_in_two_parts": [1024] * 17,  # 544 tiles for 264 workers
    "as_many_tiles_as_workers": [64] * 132,
    "a_head_in_many_parts": [32768],
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
    return make_case([1] * len(lens), lens or [0], num_rows=rows, num_tokens=rows, **(defaults | shape))


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


@pytest.mark.parametrize("kv_heads", [1, 2, 8])
def test_a_row_alone_in_many_parts(kv_heads: int) -> None:
    compare(*decode_case([20000], heads=8, kv_heads=kv_heads), 128)


@pytest.mark.parametrize("num_rows", [1, 5, 300])
def test_rows_without_a_context_give_zeros(num_rows: int) -> None:
    arrays, _ = decode_case([], num_padding=num_rows)
    got = ragged_paged_attention(*arrays, implementation="mosaic_gpu", scale=0.1)
    assert not np.asarray(got, np.float32).any()


@pytest.mark.parametrize("lens", [[32768], [2048] * 16, [9000, 1, 2, 3, 500], [1000] * 64], ids=len)
def test_many_layers_many_times(lens: list[int]) -> None:
    """The counters of parts are shared by layers and come back to 0: each layer of each run gives the same bits."""
    (q, *rest), _ = decode_case(lens, num_padding=2, heads=32, kv_heads=8)
    num_layers = 24

    @jax.jit
    def step(q: jax.Array) -> tuple[jax.Array, jax.Array]:
        workspace = attention_workspace()
        options: dict[str, Any] = dict(scale=0.1, implementation="mosaic_gpu", workspace=workspace)
        # Each layer's queries come from the layer before, as in a model; XLA may not take 0 * x for 0.
        outs = [ragged_paged_attention(q, *rest, **options)]
        for _ in range(num_layers - 1):
            again = q + 0 * outs[-1]
            outs.append(ragged_paged_attention(again, *rest, **options))
        return jnp.stack(outs), jax.freeze(workspace)

    want = np.asarray(ragged_paged_attention(q, *rest, scale=0.1, implementation="mosaic_gpu"), np.float32)
    for _ in range(50):
        outs, counters = step(q)
        np.testing.assert_array_equal(np.asarray(outs, np.float32), np.broadcast_to(want, outs.shape))
        assert not np.asarray(counters).any()
