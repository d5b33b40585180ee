"""Steps to try kernels of ragged paged attention on."""

from typing import Any

import jax.numpy as jnp
import numpy as np


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
    dtype: Any = np.float32,
    pool_dtype: Any = None,
    pool_scale_2K: Any = None,
    pool_head_dim=None,
    seed=0,
):
    """A packed step with a fragmented page table; pages outside the table are poisoned with NaN.

    pool_dtype: the queries' if None. pool_scale_2K: the pool holds its numbers over these, so that they stay of
    order one; pass the same to the call. pool_head_dim: width of the pool's heads, zeros behind head_dim in
    written tokens (as `write_kv` leaves them) and NaN in the others.
    """
    rng = np.random.default_rng(seed)
    columns = max(-(-max(context_lens) // page_size), 1) + 1
    num_pages = columns * num_rows + 3
    pool = rng.standard_normal((num_pages, 2, kv_heads, page_size, head_dim)).astype(np.float32)
    if pool_scale_2K is not None:
        pool /= np.asarray(pool_scale_2K, np.float32)[:, :, None, None]
    pool = np.pad(pool, ((0, 0),) * 4 + ((0, (pool_head_dim or head_dim) - head_dim),))
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
        pool.astype(pool_dtype or dtype),
        table,
        contexts,
        starts,
        np.array([singles, len(query_lens)], np.int32),
    )
    return tuple(jnp.asarray(a) for a in arrays), int(sum(query_lens))


def head_scales(kv_heads: int):
    """Another scale for each head: keys' from 2 to 8, values' from 1/8 to 1/2, so that no mix-up goes unseen."""
    return jnp.asarray(np.stack([np.geomspace(2.1, 8.3, kv_heads), np.geomspace(0.47, 0.12, kv_heads)]), jnp.float32)


def dequantised(arrays, pool_scale_2K):
    """The same step in float32, its pool's numbers as they are meant."""
    q, pool, *rest = arrays
    return (q.astype(jnp.float32), pool.astype(jnp.float32) * pool_scale_2K[:, :, None, None], *rest)


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
