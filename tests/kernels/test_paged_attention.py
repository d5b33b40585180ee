"""Every implementation of ragged paged attention against the plain definition, over the whole contract."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import ragged_paged_attention, write_kv

IMPLEMENTATIONS = ["xla"]


def make_case(
    query_lens,
    context_lens,
    *,
    num_rows,
    num_tokens,
    page_size,
    heads=4,
    kv_heads=2,
    head_dim=16,
    dtype=np.float32,
    seed=0,
):
    """A packed step with a fragmented page table; pages outside the table are poisoned with NaN."""
    rng = np.random.default_rng(seed)
    columns = max(-(-max(context_lens) // page_size), 1) + 1
    num_pages = columns * num_rows + 3
    pool = rng.standard_normal((num_pages, 2, kv_heads, page_size, head_dim)).astype(np.float32)
    pages = rng.permutation(num_pages)
    table = pages[: num_rows * columns].reshape(num_rows, columns).astype(np.int32)
    held = {int(p) for row, n in zip(table, context_lens, strict=False) for p in row[: -(-n // page_size)]}
    for page in set(range(num_pages)) - held:
        pool[page] = np.nan
    for row, n in enumerate(context_lens):  # and the unwritten end of a row's last page
        if n % page_size:
            pool[table[row, n // page_size], :, :, n % page_size :] = np.nan
    starts = np.zeros(num_rows + 1, np.int32)
    starts[1 : len(query_lens) + 1] = np.cumsum(query_lens)
    starts[len(query_lens) + 1 :] = starts[len(query_lens)]
    contexts = np.zeros(num_rows, np.int32)
    contexts[: len(context_lens)] = context_lens
    singles = next((i for i, n in enumerate(query_lens) if n != 1), len(query_lens))
    q = rng.standard_normal((num_tokens, heads, head_dim)).astype(np.float32)
    arrays = (
        q.astype(dtype),
        pool.astype(dtype),
        table,
        contexts,
        starts,
        np.array([singles, len(query_lens)], np.int32),
    )
    return tuple(jnp.asarray(a) for a in arrays), int(sum(query_lens))


CASES: dict[str, dict[str, Any]] = {
    "decode_alone": dict(query_lens=[1], context_lens=[1], num_rows=1, num_tokens=1, page_size=16),
    "decode_page_borders": dict(
        query_lens=[1] * 5, context_lens=[15, 16, 17, 64, 200], num_rows=8, num_tokens=8, page_size=16
    ),
    "decode_and_padding": dict(query_lens=[1, 1], context_lens=[33, 5], num_rows=4, num_tokens=4, page_size=8),
    "prompt_whole": dict(query_lens=[37], context_lens=[37], num_rows=2, num_tokens=64, page_size=16),
    "prompt_chunk": dict(query_lens=[70], context_lens=[200], num_rows=2, num_tokens=128, page_size=16),
    "mixed": dict(
        query_lens=[1, 1, 1, 65, 2, 40], context_lens=[9, 130, 64, 65, 90, 41], num_rows=8, num_tokens=128, page_size=16
    ),
    "page_of_one_token": dict(query_lens=[1, 5], context_lens=[7, 9], num_rows=2, num_tokens=8, page_size=1),
    "page_128": dict(query_lens=[1, 130], context_lens=[300, 140], num_rows=4, num_tokens=256, page_size=128),
}


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


def test_write_puts_each_token_in_its_slot_and_drops_padding():
    pool = jnp.zeros((3, 2, 2, 4, 8))
    k = jnp.arange(3 * 2 * 8, dtype=jnp.float32).reshape(3, 2, 8) + 1
    slots = jnp.array([5, 11, 12])  # 12 = P * Z: padding
    out = np.asarray(jax.jit(write_kv)(pool, k, -k, slots))
    np.testing.assert_array_equal(out[1, 0, :, 1], k[0])
    np.testing.assert_array_equal(out[2, 1, :, 3], -k[1])
    assert np.count_nonzero(out) == 2 * k[:2].size
