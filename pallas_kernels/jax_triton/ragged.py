"""Ragged paged attention in jax-triton: rows of one query by the decode kernel, the others by the chunk kernel."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.jax_triton.door import compute_capability
from pallas_kernels.tuning import triton_config

_DTYPES = (jnp.bfloat16, jnp.float16, jnp.float32)
_POOL_ONLY_DTYPES = (jnp.float8_e4m3fn, jnp.float8_e5m2)
_FIRST_WITH_FLOAT8 = 89

type Typed = jax.Array | jax.ShapeDtypeStruct  # what has a shape and a dtype


def unsupported(q: Typed, pool: Typed) -> str | None:
    """Why this backend cannot serve these arrays, or None. Device and installation apart: see `paged_attention`."""
    if q.dtype not in _DTYPES or (pool.dtype != q.dtype and pool.dtype not in _POOL_ONLY_DTYPES):
        return f"queries of {q.dtype} over a pool of {pool.dtype}: want both of one type, or a pool of float8"
    if pool.dtype in _POOL_ONLY_DTYPES and compute_capability() < _FIRST_WITH_FLOAT8:
        return f"a pool of {pool.dtype} on GPUs before compute capability 8.9"
    if q.shape[2] > 256 or q.shape[2] % 8:
        return f"head size {q.shape[2]}: must be a multiple of 8, up to 256"
    if q.shape[1] // pool.shape[2] > 32:
        return f"{q.shape[1] // pool.shape[2]} query heads share a KV head: at most 32 may"
    return None


@partial(jax.jit, static_argnames=("scale", "sliding_window", "logit_softcap"))  # traced once for all layers
def triton_paged_attention(
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
    """See `paged_attention.ragged_paged_attention`."""
    from pallas_kernels.jax_triton.chunks import chunks_into
    from pallas_kernels.jax_triton.decode import decode_into

    num_tokens, num_heads, head_dim = q_TNH.shape
    num_rows = page_table_BM.shape[0]
    config = triton_config(
        compute_capability=compute_capability(),
        head_dim=head_dim,
        itemsize=q_TNH.dtype.itemsize,
        group=num_heads // pool_P2KZH.shape[2],
        num_lines=num_tokens * num_heads,
    )
    options: dict[str, Any] = dict(
        scale=scale, sliding_window=sliding_window, logit_softcap=logit_softcap, config=config
    )
    # All kernels write into one array; queries of no row keep its zeros.
    out_ref = jax.new_ref(jnp.zeros_like(q_TNH))
    is_single_B = jnp.arange(num_rows) < row_counts[0]
    single_context_lens_B = jnp.where(is_single_B, context_lens_B, 0)
    decode_into(out_ref, q_TNH, pool_P2KZH, page_table_BM, single_context_lens_B, **options)
    if num_tokens > num_rows:
        chunks_into(out_ref, q_TNH, pool_P2KZH, page_table_BM, context_lens_B, query_starts, row_counts, **options)
    return jax.freeze(out_ref)
