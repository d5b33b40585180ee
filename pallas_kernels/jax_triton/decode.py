# pyright: basic, reportMissingImports=false
# (the kernel language hands untyped pointers to its bodies)
"""Paged attention of one query a row: work cut by `plan.py`, keys gathered by pointer, cut heads merged.

A worker walks its run of key tiles. The query heads that share a KV head are the rows of one small operand
(16 at least), so each key is read once.
"""

from typing import no_type_check

import jax
import jax.numpy as jnp
import triton
import triton.language as tl
from jaxtyping import Array, Float, Int

from pallas_kernels.jax_triton.door import load
from pallas_kernels.jax_triton.tiles import MASKED, attend_tile, load_keys_values
from pallas_kernels.plan import PlanLine, plan_decode
from pallas_kernels.tuning import TritonConfig

_MERGED_AT_ONCE = 16  # partial results


def decode_into(
    out_ref: jax.Ref,
    q_TNH: Float[Array, "T N H"],
    pool_P2KZH: Float[Array, "P 2 K Z H"],
    page_table_BM: Int[Array, "B M"],
    context_lens_B: Int[Array, " B"],
    *,
    scale: float,
    sliding_window: int | None,
    logit_softcap: float | None,
    config: TritonConfig,
) -> None:
    """Write row b's attention to out_ref[b], of its query q[b]; rows of context 0 (after all others) write nothing."""
    num_heads, head_dim = q_TNH.shape[1:]
    num_pages, _, num_kv_heads, page_size, _ = pool_P2KZH.shape
    group = num_heads // num_kv_heads
    num_workers = config.num_sms * config.workers_per_sm
    plan_WI = plan_decode(
        context_lens_B,
        num_heads=num_kv_heads,
        tile=config.decode_tile,
        sliding_window=sliding_window,
        num_workers=num_workers,
    )
    layout = dict(
        num_workers=num_workers, num_fields=len(PlanLine._fields),
        num_kv_heads=num_kv_heads, group=group, head_dim=head_dim, width=max(16, triton.next_power_of_2(head_dim)),
    )  # fmt: skip
    call = load().triton_call
    partials, lse = call(
        q_TNH, pool_P2KZH, page_table_BM, context_lens_B, plan_WI, out_ref,
        kernel=_decode_kernel,
        out_type=(
            jax.ShapeDtypeStruct((2 * num_workers, group, head_dim), jnp.float32),
            jax.ShapeDtypeStruct((2 * num_workers, group), jnp.float32),
        ),
        grid=num_workers,
        compute_capability=config.compute_capability,
        num_warps=config.decode_warps,
        num_stages=config.decode_stages,
        rows=max(16, triton.next_power_of_2(group)), tile=config.decode_tile,
        num_pages=num_pages, page_size=page_size, num_columns=page_table_BM.shape[1],
        scale=scale, window=sliding_window, softcap=logit_softcap, **layout,
    )  # fmt: skip
    call(
        partials, lse, plan_WI, out_ref,
        kernel=_merge_kernel,
        out_type=(),
        grid=(num_workers, group),
        compute_capability=config.compute_capability,
        num_warps=2,
        at_once=_MERGED_AT_ONCE, **layout,
    )  # fmt: skip


@triton.jit
@no_type_check
def _decode_kernel(
    q_ptr, pool_ptr, table_ptr, lens_ptr, plan_ptr, out_ptr, partial_ptr, lse_ptr,
    rows: tl.constexpr, tile: tl.constexpr, num_pages: tl.constexpr, page_size: tl.constexpr,
    num_columns: tl.constexpr, scale: tl.constexpr, window: tl.constexpr, softcap: tl.constexpr,
    num_workers: tl.constexpr, num_fields: tl.constexpr,
    num_kv_heads: tl.constexpr, group: tl.constexpr, head_dim: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    worker = tl.program_id(0)
    line_ptr = plan_ptr + num_fields * worker  # a `PlanLine`
    row = tl.load(line_ptr)
    head = tl.load(line_ptr + 1)
    done = tl.load(line_ptr + 2)  # tiles of this head that come before
    left = tl.load(line_ptr + 3)
    num_segments = tl.load(line_ptr + 4)
    lines, dims = tl.arange(0, rows), tl.arange(0, width)
    is_query = (lines < group)[:, None] & (dims < head_dim)[None, :]
    for _ in range(num_segments):
        context_len = tl.load(lens_ptr + row)
        lowest = 0 * context_len if window is None else tl.maximum(context_len - window, 0)
        first = lowest // tile
        num_tiles = (context_len + tile - 1) // tile - first
        count = tl.minimum(num_tiles - done, left)
        query_lines = ((row * num_kv_heads + head) * group + lines)[:, None] * head_dim + dims[None, :]
        q = tl.load(q_ptr + query_lines, mask=is_query, other=0.0)
        acc = tl.zeros((rows, width), tl.float32)
        top = tl.full((rows,), MASKED, tl.float32)
        total = tl.zeros((rows,), tl.float32)
        for i in range(count):
            keys = (first + done + i) * tile + tl.arange(0, tile)
            is_seen = keys < context_len
            if window is not None:
                is_seen = is_seen & (keys >= lowest)
            k, v = load_keys_values(
                pool_ptr, table_ptr + row * num_columns, keys, dims, head, is_seen, True, q.dtype,
                num_pages, num_kv_heads, page_size, head_dim, width,
            )  # fmt: skip
            acc, top, total = attend_tile(q, k, v, is_seen[None, :], acc, top, total, True, scale, softcap)
        acc = acc / total[:, None]
        if count == num_tiles:
            tl.store(out_ptr + query_lines, acc.to(out_ptr.dtype.element_ty), mask=is_query)
        else:
            # First the parts of heads that workers begin, then of those that they go on with.
            part_lines = (worker + tl.where(done == 0, 0, num_workers)) * group + lines
            tl.store(partial_ptr + part_lines[:, None] * head_dim + dims[None, :], acc, mask=is_query)
            tl.store(lse_ptr + part_lines, top + tl.log2(total), mask=lines < group)
        left -= count
        done += count
        ends = done == num_tiles
        done = tl.where(ends, 0, done)
        head = tl.where(ends, head + 1, head)
        row = tl.where(head == num_kv_heads, row + 1, row)
        head = tl.where(head == num_kv_heads, 0, head)


@triton.jit
@no_type_check
def _merge_kernel(
    partial_ptr, lse_ptr, plan_ptr, out_ptr,
    at_once: tl.constexpr, num_workers: tl.constexpr, num_fields: tl.constexpr,
    num_kv_heads: tl.constexpr, group: tl.constexpr, head_dim: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """Joins the parts of a head that several workers share, one query head a program; its second worker sees to it."""
    worker, line = tl.program_id(0), tl.program_id(1)
    line_ptr = plan_ptr + num_fields * worker  # a `PlanLine`
    num_segments = tl.load(line_ptr + 4)
    leader = tl.load(line_ptr + 6)
    if (num_segments > 0) & (leader == worker - 1):
        row = tl.load(line_ptr)
        head = tl.load(line_ptr + 1)
        last = tl.load(line_ptr + 7)
        dims = tl.arange(0, width)
        acc = tl.zeros((width,), tl.float32)
        top = tl.zeros((), tl.float32) + MASKED
        total = tl.zeros((), tl.float32)
        for first in range(0, last + 1, at_once):
            i = first + tl.arange(0, at_once)
            part_lines = (leader + i + tl.where(i == 0, 0, num_workers)) * group + line
            lse = tl.load(lse_ptr + part_lines, mask=i <= last, other=MASKED)
            mask = (i <= last)[:, None] & (dims < head_dim)[None, :]
            parts = tl.load(partial_ptr + part_lines[:, None] * head_dim + dims[None, :], mask=mask, other=0.0)
            new_top = tl.maximum(top, tl.max(lse, 0))
            weights = tl.exp2(lse - new_top)
            keep = tl.exp2(top - new_top)
            acc = acc * keep + tl.sum(parts * weights[:, None], 0)
            total = total * keep + tl.sum(weights, 0)
            top = new_top
        out_line = ((row * num_kv_heads + head) * group + line) * head_dim
        tl.store(out_ptr + out_line + dims, (acc / total).to(out_ptr.dtype.element_ty), mask=dims < head_dim)
