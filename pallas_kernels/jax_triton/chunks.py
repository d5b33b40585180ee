# pyright: basic, reportMissingImports=false
# (the kernel language hands untyped pointers to its bodies)
"""Paged attention of prompt chunks: a program takes one KV head's query heads of consecutive queries of one row.

Its operand's lines are queries times the query heads that share the KV head. Tiles of keys that no query sees
are skipped, and those that all see need no mask (arXiv 2205.14135).
"""

from typing import no_type_check

import jax
import triton
import triton.language as tl
from jaxtyping import Array, Float, Int

from pallas_kernels.jax_triton.chunk_plan import plan_chunks
from pallas_kernels.jax_triton.door import load
from pallas_kernels.jax_triton.tiles import MASKED, attend_tile, load_keys_values
from pallas_kernels.tuning import TritonConfig


def chunks_into(
    out_ref: jax.Ref,
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
    config: TritonConfig,
) -> None:
    """Write the attention of rows [s, r) (row_counts) to their lines of out_ref; see `ragged_paged_attention`."""
    num_tokens, num_heads, head_dim = q_TNH.shape
    num_pages, _, num_kv_heads, page_size, _ = pool_P2KZH.shape
    group = num_heads // num_kv_heads
    queries = config.chunk_rows // group
    items_I2 = plan_chunks(query_starts, row_counts, tile=queries, num_tokens=num_tokens)
    load().triton_call(
        q_TNH, pool_P2KZH, page_table_BM, context_lens_B, query_starts, items_I2, out_ref,
        kernel=_chunk_kernel,
        out_type=(),
        grid=items_I2.shape[0] * num_kv_heads,
        compute_capability=config.compute_capability,
        num_warps=config.chunk_warps,
        num_stages=config.chunk_stages,
        rows=config.chunk_rows, queries=queries, tile=config.chunk_tile,
        num_pages=num_pages, page_size=page_size, num_columns=page_table_BM.shape[1],
        scale=scale, window=sliding_window, softcap=logit_softcap,
        num_kv_heads=num_kv_heads, group=group, head_dim=head_dim, width=max(16, triton.next_power_of_2(head_dim)),
    )  # fmt: skip


@triton.jit
@no_type_check
def _chunk_kernel(
    q_ptr, pool_ptr, table_ptr, lens_ptr, starts_ptr, items_ptr, out_ptr,
    rows: tl.constexpr, queries: tl.constexpr, tile: tl.constexpr, num_pages: tl.constexpr, page_size: tl.constexpr,
    num_columns: tl.constexpr, scale: tl.constexpr, window: tl.constexpr, softcap: tl.constexpr,
    num_kv_heads: tl.constexpr, group: tl.constexpr, head_dim: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    item, head = tl.program_id(0) // num_kv_heads, tl.program_id(0) % num_kv_heads
    row = tl.load(items_ptr + 2 * item)
    if row >= 0:
        first_query = tl.load(items_ptr + 2 * item + 1) * queries
        start = tl.load(starts_ptr + row)
        num_queries = tl.load(starts_ptr + row + 1) - start
        context_len = tl.load(lens_ptr + row)
        lines, dims = tl.arange(0, rows), tl.arange(0, width)
        query = first_query + lines // group
        is_line = (lines < queries * group) & (query < num_queries)
        is_query = is_line[:, None] & (dims < head_dim)[None, :]
        heads = head * group + lines % group
        query_lines = ((start + query) * (num_kv_heads * group) + heads)[:, None] * head_dim + dims[None, :]
        q = tl.load(q_ptr + query_lines, mask=is_query, other=0.0)

        positions = context_len - num_queries + query
        first_position = context_len - num_queries + first_query
        end = tl.minimum(first_position + queries, context_len)
        lowest = 0 * end if window is None else tl.maximum(first_position - window + 1, 0)
        begin = lowest // tile * tile
        # Keys [begin, border) are seen by all queries of the tile, whole tiles of them.
        border = begin if window is not None else (first_position + 1) // tile * tile
        acc = tl.zeros((rows, width), tl.float32)
        top = tl.full((rows,), MASKED, tl.float32)
        total = tl.zeros((rows,), tl.float32)
        line_ptr = table_ptr + row * num_columns
        if window is None:
            for base in range(begin, border, tile):
                keys = base + tl.arange(0, tile)
                k, v = load_keys_values(
                    pool_ptr, line_ptr, keys, dims, head, None, False, q.dtype,
                    num_pages, num_kv_heads, page_size, head_dim, width,
                )  # fmt: skip
                acc, top, total = attend_tile(q, k, v, None, acc, top, total, False, scale, softcap)
        for base in range(border, end, tile):
            keys = base + tl.arange(0, tile)
            is_read = (keys >= lowest) & (keys < end)
            is_seen = is_read[None, :] & (keys[None, :] <= positions[:, None])
            if window is not None:
                is_seen = is_seen & (keys[None, :] > positions[:, None] - window)
            k, v = load_keys_values(
                pool_ptr, line_ptr, keys, dims, head, is_read, True, q.dtype,
                num_pages, num_kv_heads, page_size, head_dim, width,
            )  # fmt: skip
            acc, top, total = attend_tile(q, k, v, is_seen, acc, top, total, True, scale, softcap)
        tl.store(out_ptr + query_lines, (acc / total[:, None]).to(out_ptr.dtype.element_ty), mask=is_query)
