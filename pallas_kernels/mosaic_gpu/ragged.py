"""Ragged paged attention on Hopper: rows of one query by the decode kernel, prompt chunks by the prefill kernel."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.mosaic_gpu.decode import decode_attention
from pallas_kernels.mosaic_gpu.decode_launch import TILE
from pallas_kernels.mosaic_gpu.prefill import prefill_attention
from pallas_kernels.mosaic_gpu.widen import is_narrow
from pallas_kernels.tuning import DecodeConfig, PrefillConfig, decode_config, prefill_config

HEAD_DIMS = (64, 128, 256)

type Typed = jax.Array | jax.ShapeDtypeStruct  # what has a shape and a dtype


def unsupported(q: Typed, pool: Typed) -> str | None:
    """Why this backend cannot serve these arrays, or None. Device apart: see `paged_attention`.

    The head size is the pool's: queries arrive padded to it.
    """
    page_size, head_dim = pool.shape[3:]
    if q.dtype not in (jnp.bfloat16, jnp.float16) or not (pool.dtype == q.dtype or is_narrow(pool.dtype)):
        return (
            f"queries of {q.dtype} over a pool of {pool.dtype}: queries must be bfloat16 or float16, "
            "the pool the same or float8_e4m3fn or float8_e5m2"
        )
    if head_dim not in HEAD_DIMS:
        return f"a pool of head size {head_dim}: must be one of {HEAD_DIMS}, the next above the queries'"
    if page_size % 8 or (TILE % page_size and page_size % TILE):
        return f"pages of {page_size} tokens: must be 8, 16, 32 or a multiple of {TILE}"
    if q.shape[1] // pool.shape[2] > 16:
        return f"{q.shape[1] // pool.shape[2]} query heads share a KV head: at most 16 may"
    return None


def hopper_paged_attention(
    q_TNH: Float[Array, "T N H"], pool_P2KZH: Float[Array, "P 2 K Z H"], *arrays: Array, **options: Any
) -> Float[Array, "T N H"]:
    """See `paged_attention.ragged_paged_attention`. The shapes of the kernels are the device's (`tuning`)."""
    head_dim = q_TNH.shape[2]
    shapes = {"decode": decode_config(head_dim=head_dim), "prefill": prefill_config(head_dim=head_dim)}
    return _attend(q_TNH, pool_P2KZH, *arrays, **options, **shapes)


_STATIC = ("scale", "sliding_window", "logit_softcap", "decode", "prefill")


@partial(jax.jit, static_argnames=_STATIC)  # traced once for all layers
def _attend(
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
    decode: DecodeConfig,
    prefill: PrefillConfig,
    workspace: jax.Ref | None = None,
) -> Float[Array, "T N H"]:
    num_rows = page_table_BM.shape[0]
    is_single_B = jnp.arange(num_rows) < row_counts[0]
    single_BNH = decode_attention(
        q_TNH[:num_rows],
        pool_P2KZH,
        page_table_BM,
        jnp.where(is_single_B, context_lens_B, 0),
        config=decode,
        scale=scale,
        sliding_window=sliding_window,
        logit_softcap=logit_softcap,
        workspace=workspace,
    )
    if q_TNH.shape[0] == num_rows:
        return single_BNH
    out_TNH = prefill_attention(
        q_TNH,
        pool_P2KZH,
        page_table_BM,
        context_lens_B,
        query_starts,
        row_counts,
        config=prefill,
        scale=scale,
        sliding_window=sliding_window,
        logit_softcap=logit_softcap,
    )
    # Rows of one query come first, so each one's index is its row. A scatter, which XLA does in place: it copies
    # or refuses an update of a slice of a kernel's result.
    rows_B = jnp.arange(num_rows)
    targets_B = jnp.where(is_single_B, rows_B, q_TNH.shape[0] + rows_B)
    return out_TNH.at[targets_B].set(single_BNH, mode="drop", unique_indices=True)
