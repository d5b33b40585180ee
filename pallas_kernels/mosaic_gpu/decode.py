# pyright: basic, reportPrivateImportUsage=false, reportAbstractUsage=false
# (the kernel language hands untyped references to its bodies)
"""Paged attention of one query a row on Hopper: split by `plan.py`, streamed by TMA, multiplied by wgmma.

A worker is one warpgroup. It keeps `num_stages` tiles of 64 keys and values in flight and refills a
stage as soon as its products are done, across the borders of rows and heads, so the memory system
never waits for a softmax. The query heads that share a KV head sit in the first rows of a 64-row
operand: padding costs tensor-core time, which a memory-bound kernel has to spare.
Softmax is the online one of FlashAttention (arXiv 2205.14135), in base 2.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from pallas_kernels.plan import plan_decode, tile_range
from pallas_kernels.tuning import DecodeConfig

TILE = 64  # keys of one step: the least a wgmma over keys can take
_ROWS = 64  # of a wgmma operand
_MASKED = -1e30
_MERGED_AT_ONCE = 8  # partial results
_LOG2_E = math.log2(math.e)


def decode_attention(
    q_BNH: Float[Array, "B N H"],
    pool_P2KZH: Float[Array, "P 2 K Z H"],
    page_table_BM: Int[Array, "B M"],
    context_lens_B: Int[Array, " B"],
    *,
    scale: float,
    sliding_window: int | None,
    logit_softcap: float | None,
    config: DecodeConfig,
) -> Float[Array, "B N H"]:
    """See `pallas_kernels.ragged_paged_attention`; rows of context 0 give 0 and come after all others."""
    num_rows, num_heads, head_dim = q_BNH.shape
    num_kv_heads = pool_P2KZH.shape[2]
    num_workers = config.num_sms * config.workers_per_sm
    plan = plan_decode(
        context_lens_B, num_heads=num_kv_heads, tile=TILE, sliding_window=sliding_window, num_workers=num_workers
    )
    group = num_heads // num_kv_heads
    rows = -(-group // 8) * 8
    q_BKRH = jnp.pad(
        q_BNH.reshape(num_rows, num_kv_heads, group, head_dim), ((0, 0), (0, 0), (0, rows - group), (0, 0))
    )
    attend = _kernel(
        q_BKRH.shape, pool_P2KZH.shape, q_BNH.dtype, num_workers, config.num_stages,
        scale=scale, sliding_window=sliding_window, logit_softcap=logit_softcap,
    )  # fmt: skip
    # Both kernels write into one array: whole heads the first, heads in parts the second, padding rows none.
    out_ref = jax.new_ref(jnp.zeros_like(q_BKRH))
    partials, lse = attend(q_BKRH, pool_P2KZH, page_table_BM, context_lens_B, plan.work_WI, out_ref)
    _merge_kernel(partials, group)(partials, lse, plan.merge_WI, out_ref)
    return jax.freeze(out_ref)[:, :, :group].reshape(q_BNH.shape)


def _kernel(
    q_shape: tuple[int, ...],
    pool_shape: tuple[int, ...],
    dtype: jnp.dtype,
    num_workers: int,
    num_stages: int,
    *,
    scale: float,
    sliding_window: int | None,
    logit_softcap: float | None,
):
    num_rows, num_kv_heads, rows, head_dim = q_shape
    num_pages, _, _, page_size, _ = pool_shape
    num_copies = max(1, TILE // page_size)  # pages of one tile

    def body(q_ref, pool_ref, table_ref, lens_ref, work_ref, out_ref, partial_ref, lse_ref,
             q_smem, k_smem, v_smem, lse_smem, q_ready, k_ready, v_ready):  # fmt: skip
        worker = lax.axis_index("worker")
        num_tiles, num_segments = work_ref[worker, 3], work_ref[worker, 4]
        num_columns = table_ref.shape[1]

        def range_of(row):
            context_len = lens_ref[jnp.minimum(row, num_rows - 1)]
            return context_len, *tile_range(context_len, TILE, sliding_window)

        def advance(row, head, tile, tiles_of_row):
            ends = tile + 1 >= tiles_of_row
            next_head = jnp.where(ends, head + 1, head)
            wraps = next_head >= num_kv_heads
            return (
                jnp.where(wraps, row + 1, row),
                jnp.where(wraps, 0, next_head),
                jnp.where(ends, 0, tile + 1),
            )

        def fetch(row, head, tile, slot):
            """Start the copies of one tile of keys and values."""
            for copy in range(num_copies):
                column = tile * num_copies + copy if page_size <= TILE else lax.div(tile * TILE, page_size)
                page = jnp.clip(table_ref[row, jnp.minimum(column, num_columns - 1)], 0, num_pages - 1)
                for which, smem, ready in ((0, k_smem, k_ready), (1, v_smem, v_ready)):
                    if page_size <= TILE:
                        source = pool_ref.at[page, which, head]
                        target = smem.at[slot, pl.ds(copy * page_size, page_size)]
                    else:
                        source = pool_ref.at[page, which, head, pl.ds(lax.rem(tile * TILE, page_size), TILE)]
                        target = smem.at[slot]
                    plgpu.copy_gmem_to_smem(source, target, ready.at[slot])

        def fetch_next(index, cursor):
            """Fetch the worker's tile `index`, if it has so many; the cursor moves on."""
            row, head, tile = cursor
            _, first, tiles_of_row = range_of(row)

            @pl.when(index < num_tiles)
            def _():
                fetch(row, head, first + tile, lax.rem(index, num_stages))

            return advance(row, head, tile, tiles_of_row)

        def segment(number, carry):
            done, row, head, tile, cursor = carry
            context_len, first, tiles_of_row = range_of(row)
            count = jnp.minimum(tiles_of_row - tile, num_tiles - done)
            plgpu.barrier_wait(q_ready)

            def step(i, carry):
                acc, top, total, cursor = carry
                slot = lax.rem(done + i, num_stages)
                base = (first + tile + i) * TILE
                plgpu.barrier_wait(k_ready.at[slot])

                def multiply_keys(acc_ref):
                    plgpu.wgmma(acc_ref, q_smem, k_smem.at[slot].transpose((1, 0)))
                    return acc_ref[...]

                scores = pl.run_scoped(multiply_keys, plgpu.ACC((_ROWS, TILE), jnp.float32))
                if logit_softcap is not None:
                    scores = logit_softcap * jnp.tanh(scores * (scale / logit_softcap)) * _LOG2_E
                else:
                    scores = scores * (scale * _LOG2_E)
                keys = plgpu.broadcasted_iota(jnp.int32, (_ROWS, TILE), 1, layout=plgpu.Layout.WGMMA) + base
                seen = keys < context_len
                if sliding_window is not None:
                    seen = seen & (keys >= context_len - sliding_window)
                scores = jnp.where(seen, scores, _MASKED)
                new_top = jnp.maximum(top, scores.max(axis=1))
                keep = jnp.exp2(top - new_top)
                weights = jnp.exp2(scores - lax.broadcast_in_dim(new_top, scores.shape, [0]))
                total = total * keep + weights.sum(axis=1)
                acc = acc * lax.broadcast_in_dim(keep, acc.shape, [0])
                plgpu.barrier_wait(v_ready.at[slot])

                # Beyond the row's end a page holds anything, and 0 times NaN is NaN.
                @pl.when(base + TILE > context_len)
                def _():
                    values = plgpu.load(v_smem.at[slot], (), layout=plgpu.Layout.WGMMA, optimized=False)
                    rows_ = plgpu.broadcasted_iota(jnp.int32, values.shape, 0, layout=plgpu.Layout.WGMMA) + base
                    v_smem[slot] = jnp.where(rows_ < context_len, values, jnp.zeros_like(values))
                    plgpu.commit_smem()

                weights16 = weights.astype(dtype)

                def multiply_values(acc_ref):
                    plgpu.wgmma(acc_ref, weights16, v_smem.at[slot])

                acc = pl.run_state(multiply_values)(plgpu.ACC.init(acc))
                plgpu.commit_smem()  # all four warps are done with the stage
                cursor = fetch_next(done + i + num_stages, cursor)
                return acc, new_top, total, cursor

            start = (_full((_ROWS, head_dim), 0.0), _rows_full(_MASKED), _rows_full(0.0), cursor)
            acc, top, total, cursor = lax.fori_loop(0, count, step, start)

            acc = acc * lax.broadcast_in_dim(1 / jnp.maximum(total, 1e-30), acc.shape, [0])
            rounded = acc.astype(dtype)
            is_whole = (tile == 0) & (count == tiles_of_row)
            q_smem[...] = rounded
            lse_smem[...] = top + jnp.log2(total)
            plgpu.commit_smem()

            @pl.when(is_whole)
            def _():
                plgpu.copy_smem_to_gmem(q_smem.at[pl.ds(0, rows)], out_ref.at[row, head])

            @pl.when(jnp.logical_not(is_whole))
            def _():
                # What rounding took goes into a second array: merged partial results are as good as float32.
                index = 2 * worker + jnp.minimum(number, 1)
                plgpu.copy_smem_to_gmem(q_smem.at[pl.ds(0, rows)], partial_ref.at[index, 0])
                plgpu.copy_smem_to_gmem(lse_smem, lse_ref.at[index])
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                q_smem[...] = (acc - rounded.astype(jnp.float32)).astype(dtype)
                plgpu.commit_smem()
                plgpu.copy_smem_to_gmem(q_smem.at[pl.ds(0, rows)], partial_ref.at[index, 1])

            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            next_row, next_head, next_tile = advance(row, head, tile + count - 1, tiles_of_row)

            @pl.when(number + 1 < num_segments)
            def _():
                plgpu.copy_gmem_to_smem(q_ref.at[next_row, next_head], q_smem.at[pl.ds(0, rows)], q_ready)

            return done + count, next_row, next_head, next_tile, cursor

        @pl.when(num_segments > 0)
        def _():
            row, head, tile = work_ref[worker, 0], work_ref[worker, 1], work_ref[worker, 2]
            plgpu.copy_gmem_to_smem(q_ref.at[row, head], q_smem.at[pl.ds(0, rows)], q_ready)
            cursor = (row, head, tile)
            for stage in range(num_stages):
                cursor = fetch_next(jnp.int32(stage), cursor)
            lax.fori_loop(0, num_segments, segment, (jnp.int32(0), row, head, tile, cursor))
            plgpu.wait_smem_to_gmem(0)

    transforms = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
    stages = plgpu.SMEM((num_stages, TILE, head_dim), dtype, transforms=transforms)
    return plgpu.kernel(
        body,
        out_type=[
            jax.ShapeDtypeStruct((2 * num_workers, 2, rows, head_dim), dtype),
            jax.ShapeDtypeStruct((2 * num_workers, _ROWS), jnp.float32),
        ],
        grid=(num_workers,),
        grid_names=("worker",),
        scratch_types=[
            plgpu.SMEM((_ROWS, head_dim), dtype, transforms=transforms),
            stages,
            stages,
            plgpu.SMEM((_ROWS,), jnp.float32),
            plgpu.Barrier(),
            plgpu.Barrier(num_barriers=num_stages, num_arrivals=num_copies),
            plgpu.Barrier(num_barriers=num_stages, num_arrivals=num_copies),
        ],
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )


def _full(shape: tuple[int, int], value: float) -> Array:
    return plgpu.layout_cast(jnp.full(shape, value, jnp.float32), plgpu.Layout.WGMMA)


def _rows_full(value: float) -> Array:
    return plgpu.layout_cast(jnp.full((_ROWS,), value, jnp.float32), plgpu.Layout.WGMMA.reduce(1))


def _merge_kernel(partials: jax.ShapeDtypeStruct | Array, group: int):
    """Joins the partial results of each head that several workers shared; its leader's line of the plan says which."""
    num_partials, _, rows, head_dim = partials.shape

    def body(partial_ref, lse_ref, merge_ref, out_ref):
        worker = lax.axis_index("worker")
        last = merge_ref[worker, 2]

        def add(chunk, carry):
            """Some parts at once, so that their loads wait for memory together."""
            acc, tops, totals = carry
            first = chunk * _MERGED_AT_ONCE
            indices = [_part_index(merge_ref, worker, jnp.minimum(first + i, last)) for i in range(_MERGED_AT_ONCE)]
            values = [
                [jnp.where(first + i <= last, lse_ref[index, row], _MASKED) for row in range(group)]
                for i, index in enumerate(indices)
            ]
            parts = [
                partial_ref[index, 0].astype(jnp.float32) + partial_ref[index, 1].astype(jnp.float32)
                for index in indices
            ]
            new_tops = [functools.reduce(jnp.maximum, column, top) for top, *column in zip(tops, *values, strict=True)]
            kept = [jnp.exp2(top - new) for top, new in zip(tops, new_tops, strict=True)]
            weights = [[jnp.exp2(v - new) for v, new in zip(value, new_tops, strict=True)] for value in values]
            totals = [sum(column, total * keep) for total, keep, *column in zip(totals, kept, *weights, strict=True)]
            acc = acc * _by_row(kept, acc.shape)
            for part, weight in zip(parts, weights, strict=True):
                acc = acc + part * _by_row(weight, acc.shape)
            return acc, tuple(new_tops), tuple(totals)

        @pl.when(merge_ref[worker, 0] == 1)
        def _():
            nothing = (jnp.float32(0.0),) * group
            start = (jnp.zeros((rows, head_dim), jnp.float32), (jnp.float32(_MASKED),) * group, nothing)
            acc, _, totals = lax.fori_loop(0, lax.div(last, _MERGED_AT_ONCE) + 1, add, start)
            row, head = merge_ref[worker, 3], merge_ref[worker, 4]
            out_ref[row, head] = (acc * _by_row([1 / total for total in totals], acc.shape)).astype(out_ref.dtype)

    return plgpu.kernel(
        body,
        grid=(num_partials // 2,),
        grid_names=("worker",),
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )


def _part_index(merge_ref, worker: Array, i: Array) -> Array:
    """The leader's part is its first or second one; of the workers that go on it is the first."""
    return 2 * (worker + i) + jnp.where(i == 0, merge_ref[worker, 1], 0)


def _by_row(scalars: Sequence[Array], shape: tuple[int, int]) -> Array:
    """Line r of the array holds scalars[r] throughout; further lines hold 0."""
    rows = lax.broadcasted_iota(jnp.int32, shape, 0)
    out = jnp.zeros(shape, jnp.float32)
    for row, scalar in enumerate(scalars):
        out = jnp.where(rows == row, scalar, out)
    return out
