"""Ragged paged attention in plain XLA, tile by tile: the CPU path, and the fallback on any device.

Work follows the lengths, not the padded shapes: loops run over the rows, query tiles and key tiles
that exist, with the online softmax of FlashAttention (arXiv 2205.14135). Context length therefore
needs no bucket.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

_QUERY_TILE = 64  # queries of one prompt-chunk tile
_KEY_TILE = 64  # keys of one prompt-chunk tile, in whole pages
_SINGLE_KEY_TILE = 128  # keys of each row in one step over rows of one query, in whole pages
_MASKED = -1e30  # finite, so that a wholly masked tile gives 0 weights after the next real one


class _Softmax(NamedTuple):
    """A running softmax: maximum, sum of weights, weighted sum of values."""

    max: Array
    sum: Array
    acc: Array

    @staticmethod
    def empty(shape: tuple[int, ...]) -> "_Softmax":
        return _Softmax(
            jnp.full(shape[:-1], _MASKED, jnp.float32),
            jnp.zeros(shape[:-1], jnp.float32),
            jnp.zeros(shape, jnp.float32),
        )

    def rescaled(self, new_max: Array) -> tuple[Array, Array]:
        keep = jnp.exp(self.max - new_max)
        return self.sum * keep, self.acc * keep[..., None]

    def result(self) -> Array:
        return self.acc / jnp.maximum(self.sum, 1e-30)[..., None]


@partial(jax.jit, static_argnames=("scale", "sliding_window", "logit_softcap"))  # traced once for all layers
def tiled_paged_attention(
    q_TNH: Float[Array, "T N H"],
    pool_P2KZH: Float[Array, "P 2 K Z H"],
    page_table_BM: Int[Array, "B M"],
    context_lens_B: Int[Array, " B"],
    query_starts: Int[Array, " B+1"],
    row_counts: Int[Array, " 2"],
    *,
    scale: float,
    sliding_window: int | None,
    logit_softcap: float | None,
) -> Float[Array, "T N H"]:
    """See `paged_attention.ragged_paged_attention`. Rows of one query go together, the others one by one."""
    context = _make_context(pool_P2KZH, page_table_BM, sliding_window, logit_softcap)
    num_rows = page_table_BM.shape[0]
    single_context_lens_B = jnp.where(jnp.arange(num_rows) < row_counts[0], context_lens_B, 0)
    scaled_TNH = q_TNH.astype(jnp.float32) * scale
    out_TNH = _single_queries(context, scaled_TNH[:num_rows], single_context_lens_B)
    if q_TNH.shape[0] > num_rows:
        out_TNH = jnp.zeros(q_TNH.shape, jnp.float32).at[:num_rows].set(out_TNH)
        out_TNH = _query_chunks(context, scaled_TNH, out_TNH, context_lens_B, query_starts, row_counts)
    return out_TNH.astype(q_TNH.dtype)


class _Context(NamedTuple):
    """Where keys and values lie, and the static options."""

    pool_P2KZH: Array
    table_BM: Array
    pages_per_tile: int
    sliding_window: int | None
    logit_softcap: float | None

    @property
    def tile(self) -> int:
        return self.pages_per_tile * self.pool_P2KZH.shape[3]

    def first_key(self, first_position: Array) -> Array:
        """The first key that a query at first_position (or later) can see."""
        if self.sliding_window is None:
            return jnp.zeros((), jnp.int32)
        return jnp.maximum(first_position - self.sliding_window + 1, 0)

    @property
    def precision(self) -> lax.Precision | None:
        """A GPU multiplies float32 as TF32 unless told not to: enough for narrower keys, not for float32 ones."""
        return lax.Precision.HIGHEST if self.pool_P2KZH.dtype == jnp.float32 else None

    def cap(self, scores: Array) -> Array:
        if self.logit_softcap is None:
            return scores
        return self.logit_softcap * jnp.tanh(scores / self.logit_softcap)

    def sees(self, keys: Array, positions: Array) -> Array:
        seen = keys <= positions
        return seen if self.sliding_window is None else seen & (keys > positions - self.sliding_window)


def _make_context(
    pool_P2KZH: Array, page_table_BM: Array, sliding_window: int | None, logit_softcap: float | None
) -> _Context:
    page_size, num_columns = pool_P2KZH.shape[3], page_table_BM.shape[1]
    # Whole tiles of columns; the last tile's surplus columns point at page 0 and are masked. At least two:
    # from a loop of one XLA would move the gathers out and multiply them in a slower way.
    columns_per_tile = max(1, _SINGLE_KEY_TILE // page_size)
    padded_columns = max(2, -(-num_columns // columns_per_tile)) * columns_per_tile
    table_BM = jnp.pad(page_table_BM, ((0, 0), (0, padded_columns - num_columns)))
    return _Context(pool_P2KZH, table_BM, max(1, _KEY_TILE // page_size), sliding_window, logit_softcap)


def _single_queries(context: _Context, q_BNH: Array, context_lens_B: Array) -> Array:
    """One query a row, all rows together, a tile of each one's keys at a time; the longest row ends the loop."""
    num_rows, num_heads, head_dim = q_BNH.shape
    pool_P2KZH = context.pool_P2KZH
    num_kv_heads, page_size = pool_P2KZH.shape[2:4]
    num_pages = max(1, _SINGLE_KEY_TILE // page_size)
    tile = num_pages * page_size
    q_BKGH = q_BNH.reshape(num_rows, num_kv_heads, -1, head_dim)
    positions_B1 = (context_lens_B - 1)[:, None]
    starts_B = jnp.where(context_lens_B > 0, context_lens_B - 1, jnp.iinfo(jnp.int32).max // 2)

    def gather(pages_BJ: Array, which: int) -> Array:
        """A tile of every row's keys or values. One gather each: it melts into what reads it."""
        part_BJKZH = pool_P2KZH[pages_BJ, which].astype(jnp.float32)
        return part_BJKZH.transpose(0, 2, 1, 3, 4).reshape(num_rows, num_kv_heads, tile, head_dim)

    def body(i: Array, soft: _Softmax) -> _Softmax:
        pages_BJ = lax.dynamic_slice_in_dim(context.table_BM, i * num_pages, num_pages, axis=1)
        k_BKSH, v_BKSH = gather(pages_BJ, 0), gather(pages_BJ, 1)
        seen_BS = context.sees(i * tile + jnp.arange(tile), positions_B1)
        seen_B11S = seen_BS[:, None, None]
        scores_BKGS = context.cap(jnp.einsum("BKGH,BKSH->BKGS", q_BKGH, k_BKSH, precision=context.precision))
        scores_BKGS = jnp.where(seen_B11S, scores_BKGS, _MASKED)
        new_max = jnp.maximum(soft.max, scores_BKGS.max(-1))
        # A row's first tiles may be wholly masked (another row is longer): the mask again makes weights 0.
        weights_BKGS = jnp.where(seen_B11S, jnp.exp(scores_BKGS - new_max[..., None]), 0.0)
        v_BKSH = jnp.where(seen_BS[:, None, :, None], v_BKSH, 0.0)
        kept_sum, kept_acc = soft.rescaled(new_max)
        added_BKGH = jnp.einsum("BKGS,BKSH->BKGH", weights_BKGS, v_BKSH, precision=context.precision)
        return _Softmax(new_max, kept_sum + weights_BKGS.sum(-1), kept_acc + added_BKGH)

    last_tile = (context_lens_B.max() + tile - 1) // tile
    soft = lax.fori_loop(context.first_key(starts_B.min()) // tile, last_tile, body, _Softmax.empty(q_BKGH.shape))
    return soft.result().reshape(num_rows, num_heads, head_dim)


def _query_chunks(
    context: _Context, q_TNH: Array, out_TNH: Array, context_lens_B: Array, query_starts: Array, row_counts: Array
) -> Array:
    """Rows of several queries, one tile of queries after another.

    A row's last tile also writes past its end; rows come in order, so the next row overwrites that,
    and the padding takes the last of it.
    """
    tile = min(_QUERY_TILE, q_TNH.shape[0])
    padding = ((0, tile), (0, 0), (0, 0))
    q_TNH = jnp.pad(q_TNH, padding)

    def row_body(row: Array, out_TNH: Array) -> Array:
        start, stop = query_starts[row], query_starts[row + 1]
        first_position = context_lens_B[row] - (stop - start)

        def tile_body(i: Array, out_TNH: Array) -> Array:
            q_QNH = lax.dynamic_slice_in_dim(q_TNH, start + i * tile, tile)
            out_QNH = _query_tile(context, q_QNH, row, first_position + i * tile, context_lens_B[row])
            return lax.dynamic_update_slice_in_dim(out_TNH, out_QNH, start + i * tile, axis=0)

        return lax.fori_loop(0, (stop - start + tile - 1) // tile, tile_body, out_TNH)

    out_TNH = lax.fori_loop(row_counts[0], row_counts[1], row_body, jnp.pad(out_TNH, padding))
    return out_TNH[: out_TNH.shape[0] - tile]


def _query_tile(context: _Context, q_QNH: Array, row: Array, first_position: Array, context_len: Array) -> Array:
    """One tile of consecutive queries of one row over the keys it can see."""
    num_queries, num_heads, head_dim = q_QNH.shape
    num_kv_heads = context.pool_P2KZH.shape[2]
    q_KGQH = q_QNH.reshape(num_queries, num_kv_heads, -1, head_dim).transpose(1, 2, 0, 3)
    positions_Q1 = (first_position + jnp.arange(num_queries))[:, None]

    def body(tile: Array, soft: _Softmax) -> _Softmax:
        pages_J = lax.dynamic_slice(
            context.table_BM, (row, tile * context.pages_per_tile), (1, context.pages_per_tile)
        )[0]
        kv_J2KZH = context.pool_P2KZH[pages_J].astype(jnp.float32)
        kv_2KSH = kv_J2KZH.transpose(1, 2, 0, 3, 4).reshape(2, num_kv_heads, context.tile, head_dim)
        keys_S = tile * context.tile + jnp.arange(context.tile)
        seen_QS = context.sees(keys_S, positions_Q1) & (keys_S < context_len)
        scores_KGQS = context.cap(jnp.einsum("KGQH,KSH->KGQS", q_KGQH, kv_2KSH[0], precision=context.precision))
        scores_KGQS = jnp.where(seen_QS, scores_KGQS, _MASKED)
        new_max = jnp.maximum(soft.max, scores_KGQS.max(-1))
        weights_KGQS = jnp.where(seen_QS, jnp.exp(scores_KGQS - new_max[..., None]), 0.0)
        values_KSH = jnp.where((keys_S < context_len)[:, None], kv_2KSH[1], 0.0)
        kept_sum, kept_acc = soft.rescaled(new_max)
        added_KGQH = jnp.einsum("KGQS,KSH->KGQH", weights_KGQS, values_KSH, precision=context.precision)
        return _Softmax(new_max, kept_sum + weights_KGQS.sum(-1), kept_acc + added_KGQH)

    seen_end = jnp.minimum(first_position + num_queries, context_len)
    last_tile = (seen_end + context.tile - 1) // context.tile
    soft = lax.fori_loop(
        context.first_key(first_position) // context.tile, last_tile, body, _Softmax.empty(q_KGQH.shape)
    )
    return soft.result().transpose(2, 0, 1, 3).reshape(num_queries, num_heads, head_dim)
