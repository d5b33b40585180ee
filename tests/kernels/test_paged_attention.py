"""Every implementation of ragged paged attention against the plain definition, over the whole contract."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import CASES, make_case

from pallas_kernels import ragged_paged_attention, write_kv

IMPLEMENTATIONS = ["xla"]


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


def test_refuses_contradicting_shapes():
    arrays, _ = make_case(**CASES["decode_alone"])
    with pytest.raises(ValueError, match="does not fit a pool"):
        ragged_paged_attention(arrays[0][:, :3], *arrays[1:], scale=1.0)
    with pytest.raises(ValueError, match="unknown"):
        ragged_paged_attention(*arrays, scale=1.0, implementation="magic")


def test_the_hopper_kernel_is_refused_by_name_and_not_chosen_where_it_cannot_run():
    arrays, _ = make_case(**CASES["decode_alone"])
    with pytest.raises(ValueError, match="does not take queries of float32"):
        ragged_paged_attention(*arrays, scale=1.0, implementation="mosaic_gpu")
    for options, reason in (
        ({"head_dim": 96}, "head size 96"),
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
