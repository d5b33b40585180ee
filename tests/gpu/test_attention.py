"""The GPU backends against the plain definition in float32, over the whole contract."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import CASES, make_case

from pallas_kernels import attention_workspace, ragged_paged_attention
from pallas_kernels.jax_triton.door import capability_of

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
on_hopper = pytest.mark.parametrize("implementation", ["mosaic_gpu"], indirect=True)
by_triton = pytest.mark.parametrize("implementation", ["jax_triton"], indirect=True)


def compare(implementation: str, arrays: Any, used: int, head_dim: int, judge: Any = None, **options: Any) -> None:
    """judge: another definition than the plain one, called as it is."""
    q, pool, *rest = arrays
    options = {"scale": head_dim**-0.5} | options
    got = ragged_paged_attention(*arrays, implementation=implementation, **options)
    wide = (q.astype(jnp.float32), pool.astype(jnp.float32), *rest)
    judge = judge or partial(ragged_paged_attention, implementation="reference")
    want = np.asarray(judge(*wide, **options))[:used]
    assert got.dtype == q.dtype and np.isfinite(np.asarray(got, np.float32)).all()
    np.testing.assert_allclose(np.asarray(got, np.float32)[:used], want, atol=2e-2)
    assert np.linalg.norm(np.asarray(got, np.float32)[:used] - want) <= 4e-3 * np.linalg.norm(want)


def head_by_head(q: jax.Array, pool: jax.Array, *rest: jax.Array, **options: Any) -> np.ndarray:
    """The plain definition, one KV head at a time: it gathers each query's whole context."""
    num_kv_heads = pool.shape[2]
    group = q.shape[1] // num_kv_heads
    attend = partial(ragged_paged_attention, implementation="reference", **options)
    one = jax.jit(lambda q, pool: attend(q, pool, *rest))
    outs = [one(q[:, k * group : (k + 1) * group], pool[:, :, k : k + 1]) for k in range(num_kv_heads)]
    return np.concatenate([np.asarray(out) for out in outs], axis=1)


def decode_case(lens: list[int], num_padding: int = 0, **shape: Any) -> tuple[Any, int]:
    rows = len(lens) + num_padding
    defaults: dict[str, Any] = dict(page_size=64, head_dim=128, heads=8, kv_heads=2, dtype=jnp.bfloat16)
    return make_case([1] * len(lens), lens or [0], num_rows=rows, num_tokens=rows, **(defaults | shape))


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


def chunk_case(**shape: Any) -> tuple[Any, int]:
    """More query tiles times heads than there are multiprocessors; chunks begin where no tile of 8 does."""
    defaults: dict[str, Any] = dict(page_size=64, head_dim=128, heads=32, kv_heads=8, dtype=jnp.bfloat16)
    return make_case([1, 515, 200], [700, 900, 700], num_rows=5, num_tokens=768, **(defaults | shape))


@pytest.mark.parametrize("page_size", [16, 64, 128])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_many_query_tiles(implementation: str, page_size: int, head_dim: int) -> None:
    compare(implementation, *chunk_case(page_size=page_size, head_dim=head_dim), head_dim, judge=head_by_head)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(32, 32, 64), (24, 8, 64), (24, 8, 128), (24, 8, 256), (32, 8, 128)]
)
@pytest.mark.parametrize("options", [{"sliding_window": 100}, {"logit_softcap": 20.0}], ids=str)
def test_many_query_tiles_of_head_layouts(
    implementation: str, heads: int, kv_heads: int, head_dim: int, options: dict[str, Any]
) -> None:
    case = chunk_case(heads=heads, kv_heads=kv_heads, head_dim=head_dim)
    compare(implementation, *case, head_dim, judge=head_by_head, **options)


@pytest.mark.parametrize("num_tokens", [512, 4096])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("options", [{}, {"sliding_window": 100}, {"logit_softcap": 20.0}], ids=str)
def test_long_prompt_chunks(implementation: str, num_tokens: int, head_dim: int, options: dict[str, Any]) -> None:
    """Enough queries for the larger operands, and too many for the plain definition's memory."""
    lens = [1, 1, 300, num_tokens - 400]
    contexts = [700, 3, 300, num_tokens]
    shape: dict[str, Any] = dict(heads=16, kv_heads=4, head_dim=head_dim, dtype=jnp.bfloat16)
    case = make_case(lens, contexts, num_rows=8, num_tokens=num_tokens, page_size=64, **shape)
    compare(implementation, *case, head_dim, judge=partial(ragged_paged_attention, implementation="xla"), **options)


@pytest.mark.parametrize("kv_heads", [1, 2, 8])
def test_a_row_alone_in_many_parts(implementation: str, kv_heads: int) -> None:
    compare(implementation, *decode_case([20000], heads=8, kv_heads=kv_heads), 128)


@pytest.mark.parametrize("num_rows", [1, 5, 300])
def test_rows_without_a_context_give_zeros(implementation: str, num_rows: int) -> None:
    arrays, _ = decode_case([], num_padding=num_rows)
    got = ragged_paged_attention(*arrays, implementation=implementation, scale=0.1)
    assert not np.asarray(got, np.float32).any()


@on_hopper
@pytest.mark.parametrize("lens", [[32768], [2048] * 16, [9000, 1, 2, 3, 500], [1000] * 64], ids=len)
def test_many_layers_many_times(implementation: str, lens: list[int]) -> None:
    """The counters of parts are shared by layers and come back to 0: each layer of each run gives the same bits."""
    (q, *rest), _ = decode_case(lens, num_padding=2, heads=32, kv_heads=8)
    num_layers = 24

    @jax.jit
    def step(q: jax.Array) -> tuple[jax.Array, jax.Array]:
        workspace = attention_workspace()
        options: dict[str, Any] = dict(scale=0.1, implementation=implementation, workspace=workspace)
        # Each layer's queries come from the layer before, as in a model; XLA may not take 0 * x for 0.
        outs = [ragged_paged_attention(q, *rest, **options)]
        for _ in range(num_layers - 1):
            again = q + 0 * outs[-1]
            outs.append(ragged_paged_attention(again, *rest, **options))
        return jnp.stack(outs), jax.freeze(workspace)

    want = np.asarray(ragged_paged_attention(q, *rest, scale=0.1, implementation=implementation), np.float32)
    for _ in range(50):
        outs, counters = step(q)
        np.testing.assert_array_equal(np.asarray(outs, np.float32), np.broadcast_to(want, outs.shape))
        assert not np.asarray(counters).any()


# What follows only jax_triton takes.


@by_triton
@pytest.mark.parametrize("window", [None, 6, 70])
@pytest.mark.parametrize("name", CASES)
def test_float32_and_odd_pages(implementation: str, name: str, window: int | None) -> None:
    arrays, used = make_case(**CASES[name])
    want = ragged_paged_attention(*arrays, scale=0.25, sliding_window=window, implementation="reference")
    got = ragged_paged_attention(*arrays, scale=0.25, sliding_window=window, implementation=implementation)
    assert np.isfinite(np.asarray(got)).all()
    np.testing.assert_allclose(got[:used], want[:used], atol=3e-6)


@by_triton
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(8, 1, 80), (16, 1, 96), (32, 1, 128), (6, 2, 16), (6, 2, 32)]
)
@pytest.mark.parametrize("options", [{}, {"sliding_window": 50, "logit_softcap": 20.0}], ids=str)
def test_odd_heads(implementation: str, heads: int, kv_heads: int, head_dim: int, options: dict[str, Any]) -> None:
    shape: dict[str, Any] = dict(heads=heads, kv_heads=kv_heads, head_dim=head_dim, dtype=jnp.bfloat16)
    compare(implementation, *make_case(**CASES["mixed"], **shape), head_dim, **options)


@by_triton
@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2])
def test_float8_pool(implementation: str, dtype: Any) -> None:
    if (capability_of(jax.devices()[0]) or 0) < 89:
        pytest.skip("needs a GPU of compute capability 8.9")
    shape: dict[str, Any] = dict(heads=8, kv_heads=2, head_dim=128, dtype=jnp.bfloat16)
    (q, pool, *rest), used = make_case(**CASES["mixed"], **shape)
    compare(implementation, (q, pool.astype(dtype), *rest), used, 128)
