"""The plain definition of ragged paged attention: what every other implementation is checked against."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def plain_paged_attention(
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
    """Gather each query's whole context and take a masked softmax. Meaning first; memory O(T * M * Z)."""
    num_tokens, num_heads, head_dim = q_TNH.shape
    num_rows = page_table_BM.shape[0]
    num_kv_heads, page_size = pool_P2KZH.shape[2:4]
    tokens_T = jnp.arange(num_tokens)
    row_T = jnp.clip(jnp.searchsorted(query_starts, tokens_T, side="right") - 1, 0, num_rows - 1)
    is_query_T = (tokens_T < query_starts[-1]) & (row_T < row_counts[1])
    positions_T = context_lens_B[row_T] - query_starts[row_T + 1] + tokens_T

    kv_TM2KZH = pool_P2KZH.astype(jnp.float32)[page_table_BM[row_T]]
    kv_T2KSH = jnp.moveaxis(kv_TM2KZH, 1, 3).reshape(num_tokens, 2, num_kv_heads, -1, head_dim)
    q_TKGH = q_TNH.astype(jnp.float32).reshape(num_tokens, num_kv_heads, -1, head_dim)
    scores_TKGS = jnp.einsum("TKGH,TKSH->TKGS", q_TKGH, kv_T2KSH[:, 0], precision="highest") * scale
    if logit_softcap is not None:
        scores_TKGS = logit_softcap * jnp.tanh(scores_TKGS / logit_softcap)

    keys_S = jnp.arange(page_table_BM.shape[1] * page_size)
    is_seen_TS = (keys_S <= positions_T[:, None]) & is_query_T[:, None]
    if sliding_window is not None:
        is_seen_TS &= keys_S > positions_T[:, None] - sliding_window
    scores_TKGS = jnp.where(is_seen_TS[:, None, None], scores_TKGS, -jnp.inf)
    # A query without keys (padding) gives 0, not NaN; unseen values may be anything, NaN included.
    weights_TKGS = jnp.where(is_seen_TS[:, None, None], jax.nn.softmax(scores_TKGS, axis=-1), 0.0)
    values_TKSH = jnp.where(is_seen_TS[:, None, :, None], kv_T2KSH[:, 1], 0.0)
    out_TKGH = jnp.einsum("TKGS,TKSH->TKGH", weights_TKGS, values_TKSH, precision="highest")
    return out_TKGH.reshape(num_tokens, num_heads, head_dim).astype(q_TNH.dtype)
