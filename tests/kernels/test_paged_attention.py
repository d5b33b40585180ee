"""Every implementation of ragged paged attention against the plain definition, over the whole contract."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import CASES, dequantised, head_scales, make_case

from pallas_kernels import pool_head_dim, ragged_paged_attention, write_kv

IMPLEMENTATIONS = ["xla"]
FP8 = [jnp.float8_e4m3fn, jnp.float8_e5m2]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("window", [None, 6, 70])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_plain_definition(name, window, implementation):
    arrays, used = make_case(**CASES[name])
    want = ragged_paged_attention(*arrays, scale=0.25, sliding_window=window, implementation="reference")
    got = ragged_paged_attention(*arrays, scale=0.25, sliding_window=window, implementation=implementation)
    assert np.isfinite(np.asarray(got)).all()
    np.testing.assert_allclose(got[:used], want[:used], atol=3e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(8, 8, 64), (8, 1, 80), (9, 3, 64), (16, 1, 96)])
def test_head_layouts_softcap_and_bfloat16(heads, kv_heads, head_dim, implementation):
    arrays, used = make_case(**CASES["mixed"], heads=heads, kv_heads=kv_heads, head_dim=head_dim, dtype=jnp.bfloat16)
    want = ragged_paged_attention(*arrays, scale=head_dim**-0.5, logit_softcap=20.0, implementation="reference")
    got = ragged_paged_attention(*arrays, scale=head_dim**-0.5, logit_softcap=20.0, implementation=implementation)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got[:used].astype(np.float32), want[:used].astype(np.float32), atol=2e-2)


def test_plain_definition_is_causal_softmax_attention():
    """The judge itself against attention written once more, without pages."""
    (q, pool, table, contexts, starts, counts), used = make_case(**CASES["prompt_whole"])
    got = ragged_paged_attention(q, pool, table, contexts, starts, counts, scale=0.25, implementation="reference")
    kv = np.concatenate([np.asarray(pool)[p] for p in np.asarray(table)[0]], axis=2)[:, :, :used]
    for head in range(4):
        scores = np.asarray(q)[:used, head] @ kv[0, head // 2].T * 0.25
        scores[np.triu_indices(used, 1)] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        want = weights / weights.sum(-1, keepdims=True) @ kv[1, head // 2]
        np.testing.assert_allclose(got[:used, head], want, atol=3e-6)


@pytest.mark.parametrize("implementation", ["reference", *IMPLEMENTATIONS])
@pytest.mark.parametrize("pool_dtype", FP8)
@pytest.mark.parametrize("name", CASES)
def test_an_8_bit_pool_with_scales_is_the_float32_pool_it_stands_for(name, pool_dtype, implementation):
    scales = head_scales(2)
    arrays, used = make_case(**CASES[name], pool_dtype=pool_dtype, pool_scale_2K=scales)
    options = {"scale": 0.25, "sliding_window": 70, "logit_softcap": 20.0}
    want = ragged_paged_attention(*dequantised(arrays, scales), **options, implementation="reference")
    got = ragged_paged_attention(*arrays, pool_scale_2K=scales, **options, implementation=implementation)
    assert arrays[1].dtype == pool_dtype and np.isfinite(np.asarray(got)).all()
    np.testing.assert_allclose(got[:used], want[:used], atol=3e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("pool_dtype", [*FP8, jnp.float32, jnp.float16])
def test_pools_of_another_dtype_than_the_queries(pool_dtype, dtype, implementation):
    scales = head_scales(3)
    shape = {"heads": 9, "kv_heads": 3, "head_dim": 64}
    arrays, used = make_case(**CASES["mixed"], **shape, dtype=dtype, pool_dtype=pool_dtype, pool_scale_2K=scales)
    want = ragged_paged_attention(*dequantised(arrays, scales), scale=0.125, implementation="reference")
    got = ragged_paged_attention(*arrays, pool_scale_2K=scales, scale=0.125, implementation=implementation)
    assert got.dtype == dtype
    np.testing.assert_allclose(got[:used].astype(np.float32), want[:used], atol=2e-2)


@pytest.mark.parametrize("implementation", ["reference", *IMPLEMENTATIONS])
@pytest.mark.parametrize(("head_dim", "wider"), [(80, 128), (96, 128), (16, 64)])
@pytest.mark.parametrize("garbage", [0.0, 1e4])
def test_a_pool_of_wider_heads_gives_the_same(head_dim, wider, garbage, implementation):
    """Whatever finite numbers lie behind the heads, and NaN where nothing was written yet."""
    options = {"scale": head_dim**-0.5, "sliding_window": 70}
    narrow, used = make_case(**CASES["mixed"], head_dim=head_dim)
    (q, pool, *rest), _ = make_case(**CASES["mixed"], head_dim=head_dim, pool_head_dim=wider)
    pool = pool.at[..., head_dim:].add(garbage)
    want = ragged_paged_attention(*narrow, **options, implementation="reference")
    got = ragged_paged_attention(q, pool, *rest, **options, implementation=implementation)
    assert pool.shape[-1] == wider and got.shape == q.shape and np.isfinite(np.asarray(got)).all()
    np.testing.assert_allclose(got[:used], want[:used], atol=3e-6)


def test_wider_heads_and_scales_together():
    scales = head_scales(2)
    shape = {"head_dim": 80, "pool_head_dim": 128, "pool_dtype": jnp.float8_e4m3fn}
    arrays, used = make_case(**CASES["mixed"], **shape, pool_scale_2K=scales)
    want = ragged_paged_attention(*dequantised(arrays, scales), scale=0.1, implementation="reference")
    got = ragged_paged_attention(*arrays, pool_scale_2K=scales, scale=0.1)
    np.testing.assert_allclose(got[:used], want[:used], atol=3e-6)


def test_refuses_contradicting_shapes():
    arrays, _ = make_case(**CASES["decode_alone"])
    with pytest.raises(ValueError, match="does not fit a pool"):
        ragged_paged_attention(arrays[0][:, :3], *arrays[1:], scale=1.0)
    with pytest.raises(ValueError, match="Hp at least H"):
        ragged_paged_attention(arrays[0], arrays[1][..., :8], *arrays[2:], scale=1.0)
    with pytest.raises(ValueError, match="unknown"):
        ragged_paged_attention(*arrays, scale=1.0, implementation="magic")


def test_the_hopper_kernel_is_refused_by_name_and_not_chosen_where_it_cannot_run():
    arrays, _ = make_case(**CASES["decode_alone"])
    with pytest.raises(ValueError, match="does not take queries of float32"):
        ragged_paged_attention(*arrays, scale=1.0, implementation="mosaic_gpu")
    for options, reason in (
        ({"head_dim": 96}, "a pool of head size 96"),
        ({"head_dim": 128, "pool_dtype": jnp.float32}, "over a pool of float32"),
        ({"head_dim": 128, "page_size": 48}, "pages of 48"),
        ({"head_dim": 128, "heads": 32, "kv_heads": 1}, "32 query heads"),
    ):
        odd, _ = make_case(**(CASES["decode_alone"] | {"dtype": jnp.bfloat16} | options))
        with pytest.raises(ValueError, match=reason):
            ragged_paged_attention(*odd, scale=1.0, implementation="mosaic_gpu")
        got = ragged_paged_attention(*odd, scale=1.0)  # "auto"
        np.testing.assert_array_equal(got, ragged_paged_attention(*odd, scale=1.0, implementation="xla"))


def test_write_puts_each_token_in_its_slot_and_drops_padding():
    pool = jnp.zeros((3, 2, 2, 4, 8))
    k = jnp.arange(3 * 2 * 8, dtype=jnp.float32).reshape(3, 2, 8) + 1
    slots = jnp.array([5, 11, 12])  # 12 = P * Z: padding
    out = np.asarray(jax.jit(write_kv)(pool, k, -k, slots))
    np.testing.assert_array_equal(out[1, 0, :, 1], k[0])
    np.testing.assert_array_equal(out[2, 1, :, 3], -k[1])
    assert np.count_nonzero(out) == 2 * k[:2].size


@pytest.mark.parametrize("pool_dtype", FP8)
@pytest.mark.parametrize("head_dim", [8, 6])
def test_write_divides_by_the_scale_saturates_and_zeroes_the_padding(pool_dtype, head_dim):
    largest = float(jnp.finfo(pool_dtype).max)
    scales = jnp.array([[2.0, 0.5], [4.0, 0.25]])
    k = jnp.ones((2, 2, head_dim), jnp.bfloat16).at[0, 0, 0].set(3 * largest).at[0, 1, 1].set(-jnp.inf)
    v = (3 * k).at[1, 1, 2].set(jnp.nan)
    pool = jnp.full((2, 2, 2, 4, 8), jnp.nan, pool_dtype)
    out = np.asarray(jax.jit(write_kv)(pool, k, v, jnp.array([1, 6]), scales)).astype(np.float32)
    first, second = out[0, :, :, 1], out[1, :, :, 2]  # [2, K, H] each
    np.testing.assert_array_equal(first[0, :, 2], [0.5, 2.0])  # keys of 1
    np.testing.assert_array_equal(first[1, :, 2], [0.75, 12.0])  # values of 3
    assert (first[0, 0, 0], first[0, 1, 1]) == (largest, -largest)
    assert np.isnan(second[1, 1, 2])  # a broken number is not made to look whole
    assert (out[..., head_dim:][~np.isnan(out[..., 0])] == 0).all()
    written = np.zeros((2, 4), bool)
    written[[0, 1], [1, 2]] = True
    assert np.isnan(out[..., 0]).transpose(0, 3, 1, 2)[~written].all()


@pytest.mark.parametrize("pool_dtype", [*FP8, jnp.float16])
def test_a_narrower_pool_holds_its_largest_number_not_infinity(pool_dtype):
    k = jnp.array([[[1e30, -1e30]]], jnp.bfloat16)
    out = np.asarray(write_kv(jnp.zeros((1, 2, 1, 1, 2), pool_dtype), k, k, jnp.array([0]))).astype(np.float32)
    np.testing.assert_array_equal(
        out[0, 0, 0, 0], [float(jnp.finfo(pool_dtype).max), -float(jnp.finfo(pool_dtype).max)]
    )


def test_what_is_written_with_scales_is_read_with_them():
    """Writing and reading agree on which way a scale goes: the way round costs no more than 8 bits must."""
    (q, pool, table, contexts, starts, counts), used = make_case(**CASES["prompt_whole"])
    page_size, scales = pool.shape[3], head_scales(2)
    k, v = (jax.random.normal(jax.random.key(i), (64, 2, 16)) for i in range(2))
    tokens = jnp.arange(64)
    slots = jnp.where(tokens < used, table[0, tokens // page_size] * page_size + tokens % page_size, pool.size)
    rest = (table, contexts, starts, counts)
    wide = write_kv(pool, k, v, slots)
    want = ragged_paged_attention(q, wide, *rest, scale=0.25, implementation="reference")
    narrow = write_kv(jnp.full(pool.shape, jnp.nan, jnp.float8_e4m3fn), k, v, slots, scales)
    got = ragged_paged_attention(q, narrow, *rest, pool_scale_2K=scales, scale=0.25)
    error = np.linalg.norm(got[:used] - want[:used]) / np.linalg.norm(want[:used])
    assert 1e-3 < error < 0.06  # three bits of fraction: a number is off by up to 1/16, by 1/40 on average


@pytest.mark.parametrize(
    ("head_dim", "wanted", "options"),
    [
        (64, 64, {}),
        (80, 128, {}),
        (96, 128, {}),
        (128, 128, {}),
        (192, 256, {}),
        (256, 256, {}),
        (32, 64, {}),
        (16, 16, {}),  # three quarters would be padding
        (512, 512, {}),
        (80, 80, {"capability": "8.0"}),
        (80, 80, {"capability": None}),
        (80, 80, {"dtype": jnp.float32}),
        (80, 80, {"pool_dtype": jnp.float16}),
        (80, 128, {"pool_dtype": jnp.float8_e4m3fn}),
        (80, 128, {"pool_dtype": jnp.float8_e5m2}),
        (80, 80, {"page_size": 48}),
        (80, 80, {"heads": 40}),
    ],
)
def test_the_head_size_to_allocate(head_dim, wanted, options):
    dtype = options.get("dtype", jnp.bfloat16)
    q = jax.ShapeDtypeStruct((1, options.get("heads", 8), head_dim), dtype)
    shape = (1, 2, 2, options.get("page_size", 64), head_dim)
    pool = jax.ShapeDtypeStruct(shape, options.get("pool_dtype", dtype))
    assert pool_head_dim(q, pool, options.get("capability", "9.0")) == wanted
