# pyright: basic, reportPrivateImportUsage=false, reportAbstractUsage=false
# (the kernel language hands untyped references to its bodies)
"""Paged attention of prompt chunks on Hopper: FlashAttention-3's schedule over pages.

A worker is three warpgroups that go through the query tiles dealt to it by `prefill_plan.py`. One
fetches queries and pages by TMA; two multiply, each 64 queries of one head, and take turns: one owns
the tensor cores while the other takes its softmax (arXiv 2407.08608, section 3.1). Where an even number
of query heads share a KV head the two work on two such heads of the same queries, else on
neighbouring queries of the same head. The pipeline of keys runs on across query tiles.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from pallas_kernels.mosaic_gpu.prefill_plan import ALIGNMENT, dealt_index, plan_prefill
from pallas_kernels.tuning import PrefillConfig

_ROWS = 64  # queries of a warpgroup
_MASKED = -1e30
_LOG2_E = math.log2(math.e)


class _Shape(NamedTuple):
    """Sizes that the kernel is built for."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_pages: int
    page_size: int
    num_workers: int
    num_stages: int

    @property
    def pairs_heads(self) -> bool:
        """Whether the two warpgroups share queries, not a head."""
        return self.num_heads // self.num_kv_heads % 2 == 0

    @property
    def query_tile(self) -> int:
        return _ROWS if self.pairs_heads else 2 * _ROWS

    @property
    def num_units(self) -> int:
        """Of work in one query tile: pairs of heads, or heads."""
        return self.num_heads // 2 if self.pairs_heads else self.num_heads

    @property
    def key_tile(self) -> int:
        fits = self.page_size % 128 == 0 or 128 % self.page_size == 0
        return 128 if fits and self.head_dim <= 128 else 64

    def head(self, unit, warpgroup):
        return 2 * unit + warpgroup if self.pairs_heads else unit

    def first_query(self, item, warpgroup):
        return item.first if self.pairs_heads else item.first + _ROWS * warpgroup


class _Item(NamedTuple):
    """A line of the plan and the head or heads to take it with."""

    first: Array
    start: Array
    stop: Array
    offset: Array
    row: Array
    first_tile: Array
    masked_tile: Array
    num_tiles: Array
    unit: Array


def prefill_attention(
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
    config: PrefillConfig,
) -> Float[Array, "T N H"]:
    """Outputs of the rows of several queries; see `pallas_kernels.ragged_paged_attention`.

    Those of queries that belong to no row are 0, those of single queries whatever the memory held.
    """
    num_tokens, num_heads, head_dim = q_TNH.shape
    num_pages, _, num_kv_heads, page_size, _ = pool_P2KZH.shape
    shape = _Shape(num_heads, num_kv_heads, head_dim, num_pages, page_size, config.num_sms, config.num_stages)
    padding = -num_tokens % ALIGNMENT
    plan = plan_prefill(
        context_lens_B, query_starts, row_counts,
        num_tokens=num_tokens + padding, query_tile=shape.query_tile, key_tile=shape.key_tile,
        sliding_window=sliding_window,
    )  # fmt: skip
    attend = _kernel(shape, q_TNH.dtype, scale=scale, sliding_window=sliding_window, logit_softcap=logit_softcap)
    q_TNH = jnp.pad(q_TNH, ((0, padding), (0, 0), (0, 0))) if padding else q_TNH
    out_TNH = attend(q_TNH, pool_P2KZH, page_table_BM, plan.items_IJ, plan.num_items)
    return out_TNH[:num_tokens] if padding else out_TNH


def _kernel(shape: _Shape, dtype: jnp.dtype, *, scale: float, sliding_window: int | None, logit_softcap: float | None):
    head_dim, key_tile, num_stages = shape.head_dim, shape.key_tile, shape.num_stages
    num_copies = max(1, key_tile // shape.page_size)  # pages of one tile
    width = min(head_dim, 128)  # columns of the outputs that leave together

    def body(q_ref, pool_ref, table_ref, items_ref, num_items_ref, out_ref,
             q_smem2, k_smem, v_smem, out_smem2, q_ready, k_ready, v_ready, k_read, v_read, turn):  # fmt: skip
        warpgroup = lax.axis_index("wg")

        def count_mine():
            total = num_items_ref[0] * shape.num_units
            num_turns = lax.div(total + shape.num_workers - 1, shape.num_workers)
            last = dealt_index(num_turns - 1, lax.axis_index("worker"), shape.num_workers)
            return jnp.where((num_turns > 0) & (last >= total), num_turns - 1, num_turns)

        def item_of(turn):
            index = dealt_index(turn, lax.axis_index("worker"), shape.num_workers)
            line = lax.div(index, shape.num_units)
            return _Item(*(items_ref[line, i] for i in range(8)), unit=lax.rem(index, shape.num_units))

        @pl.when(warpgroup == 2)
        def _():
            plgpu.set_max_registers(32, action="decrease")
            fetch_all(item_of, count_mine(), pool_ref, table_ref, k_smem, v_smem, k_ready, v_ready, k_read, v_read)

        @pl.when(warpgroup < 2)
        def _():
            plgpu.set_max_registers(240, action="increase")
            attend_all(warpgroup, item_of, count_mine(), q_ref, out_ref, q_smem2.at[warpgroup], k_smem, v_smem,
                       out_smem2.at[warpgroup], q_ready.at[warpgroup], k_ready, v_ready, k_read, v_read,
                       turn)  # fmt: skip

    def fetch_all(item_of, num_mine, pool_ref, table_ref, k_smem, v_smem, k_ready, v_ready, k_read, v_read):
        num_columns = table_ref.shape[1]

        def pages_of(row, tile):
            if shape.page_size <= key_tile:
                columns = [tile * num_copies + copy for copy in range(num_copies)]
            else:
                columns = [lax.div(tile * key_tile, shape.page_size)]
            return [
                jnp.clip(table_ref[row, jnp.minimum(column, num_columns - 1)], 0, shape.num_pages - 1)
                for column in columns
            ]

        def fetch(pages, which, head, tile, smem, ready):
            for copy, page in enumerate(pages):
                if shape.page_size <= key_tile:
                    source = pool_ref.at[page, which, head]
                    target = smem.at[pl.ds(copy * shape.page_size, shape.page_size)]
                else:
                    within = pl.ds(lax.rem(tile * key_tile, shape.page_size), key_tile)
                    source, target = pool_ref.at[page, which, head, within], smem
                plgpu.copy_gmem_to_smem(source, target, ready)

        def fetch_item(i, done):
            item = item_of(i)
            kv_head = lax.div(shape.head(item.unit, 0), shape.num_heads // shape.num_kv_heads)

            def fetch_tile(j, _):
                tile, slot = item.first_tile + j, lax.rem(done + j, num_stages)
                pages = pages_of(item.row, tile)
                for which, smem, ready, read in ((0, k_smem, k_ready, k_read), (1, v_smem, v_ready, v_read)):

                    @pl.when(done + j >= num_stages)
                    def _(read=read):
                        plgpu.barrier_wait(read.at[slot])

                    fetch(pages, which, kv_head, tile, smem.at[slot], ready.at[slot])

            lax.fori_loop(0, item.num_tiles, fetch_tile, None)
            return done + item.num_tiles

        lax.fori_loop(0, num_mine, fetch_item, jnp.int32(0))

    def attend_all(warpgroup, item_of, num_mine, q_ref, out_ref, q_smem, k_smem, v_smem, out_smem,
                   q_ready, k_ready, v_ready, k_read, v_read, turn):  # fmt: skip
        def fetch_queries(i):
            """Not left to the fetching warpgroup, which would wait for both, while one waits for the other's turn."""

            @pl.when(i < num_mine)
            def _():
                item = item_of(i)
                queries = pl.ds(pl.multiple_of(shape.first_query(item, warpgroup), ALIGNMENT), _ROWS)
                plgpu.copy_gmem_to_smem(q_ref.at[queries, shape.head(item.unit, warpgroup)], q_smem, q_ready)

        def meet():
            plgpu.barrier_arrive(turn)
            plgpu.barrier_wait(turn)

        def multiply_keys(slot):
            def run(acc_ref):
                plgpu.wgmma(acc_ref, q_smem, k_smem.at[slot].transpose((1, 0)))
                meet()
                return acc_ref[...]

            return pl.run_scoped(run, plgpu.ACC((_ROWS, key_tile), jnp.float32))

        def clear_beyond(slot, base, context_len):
            """Beyond the row's end a page holds anything, and 0 times NaN is NaN."""
            for first_key in range(0, key_tile, 64):
                for column in range(0, head_dim, 64):
                    values_ref = v_smem.at[slot, pl.ds(first_key, 64), pl.ds(column, 64)]
                    values = plgpu.load(values_ref, (), layout=plgpu.Layout.WGMMA, optimized=False)
                    keys = plgpu.broadcasted_iota(jnp.int32, values.shape, 0, layout=plgpu.Layout.WGMMA)
                    values_ref[...] = jnp.where(keys < context_len - base - first_key, values, jnp.zeros_like(values))
            plgpu.commit_smem()

        def attend_item(i, done):
            item = item_of(i)
            first_query = shape.first_query(item, warpgroup)
            context_len = item.stop + item.offset

            def step(j, carry, masked):
                acc, top, total = carry
                slot = lax.rem(done + j, num_stages)
                base = (item.first_tile + j) * key_tile
                scores = multiply_keys(slot)
                plgpu.barrier_arrive(k_read.at[slot])
                factor = scale * _LOG2_E
                if logit_softcap is not None:
                    scores = jnp.tanh(scores * (scale / logit_softcap))
                    factor = logit_softcap * _LOG2_E
                if masked:
                    positions = plgpu.broadcasted_iota(jnp.int32, scores.shape, 0, layout=plgpu.Layout.WGMMA)
                    keys = plgpu.broadcasted_iota(jnp.int32, scores.shape, 1, layout=plgpu.Layout.WGMMA)
                    behind = positions + (first_query + item.offset - base) - keys  # how far the key lies back
                    seen = behind >= 0
                    if sliding_window is not None:
                        seen = seen & (behind < sliding_window)
                    scores = jnp.where(seen, scores, _MASKED)
                new_top = jnp.maximum(top, scores.max(axis=1) * factor)
                keep = jnp.exp2(top - new_top)
                weights = jnp.exp2(scores * factor - lax.broadcast_in_dim(new_top, scores.shape, [0]))
                acc = acc * lax.broadcast_in_dim(keep, acc.shape, [0])
                total = total * keep + weights.sum(axis=1)
                weights16 = weights.astype(dtype)
                # Nothing of the softmax may move behind the other warpgroup's turn.
                acc, total, new_top, weights16 = lax.optimization_barrier((acc, total, new_top, weights16))
                plgpu.barrier_arrive(turn)
                plgpu.barrier_wait(v_ready.at[slot])
                if masked:
                    pl.when(base + key_tile > context_len)(lambda: clear_beyond(slot, base, context_len))
                plgpu.barrier_wait(turn)

                def multiply_values(acc_ref):
                    plgpu.wgmma(acc_ref, weights16, v_smem.at[slot])

                    @pl.when(j + 1 < item.num_tiles)
                    def _():
                        plgpu.barrier_wait(k_ready.at[lax.rem(done + j + 1, num_stages)])

                acc = pl.run_state(multiply_values)(plgpu.ACC.init(acc))
                plgpu.barrier_arrive(v_read.at[slot])
                return acc, new_top, total

            plgpu.barrier_wait(q_ready)
            pl.when(item.num_tiles > 0)(lambda: plgpu.barrier_wait(k_ready.at[lax.rem(done, num_stages)]))
            carry = (_full((_ROWS, head_dim), 0.0), _rows_full(_MASKED), _rows_full(0.0))
            num_plain = 0 if sliding_window is not None else item.masked_tile - item.first_tile
            if sliding_window is None:
                carry = lax.fori_loop(0, num_plain, lambda j, carry: step(j, carry, masked=False), carry)
            acc, _, total = lax.fori_loop(
                num_plain, item.num_tiles, lambda j, carry: step(j, carry, masked=True), carry
            )
            acc = acc * lax.broadcast_in_dim(1 / jnp.maximum(total, 1e-30), acc.shape, [0])
            store(acc.astype(dtype), i)
            fetch_queries(i + 1)  # all four warps are done with the old ones: `store` synchronised them
            return done + item.num_tiles

        def store(out, i):
            item = item_of(i)  # read again: kept, its numbers would take registers from the loop
            first_query = shape.first_query(item, warpgroup)
            head = shape.head(item.unit, warpgroup)
            is_whole = (first_query >= item.start) & (first_query + _ROWS <= item.stop)
            for part in range(0, head_dim, width):
                columns = pl.ds(part, width)
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # of the part or item before
                out_smem[...] = out[:, part : part + width]
                plgpu.commit_smem()

                @pl.when(is_whole)
                def _(columns=columns):
                    plgpu.copy_smem_to_gmem(out_smem, out_ref.at[pl.ds(first_query, _ROWS), head, columns])

                @pl.when(jnp.logical_not(is_whole))
                def _(columns=columns):
                    def store_query(i, _):
                        query = first_query + i

                        @pl.when((query >= item.start) & (query < item.stop))
                        def _():
                            plgpu.copy_smem_to_gmem(
                                out_smem.at[pl.ds(i, 1)], out_ref.at[pl.ds(query, 1), head, columns]
                            )

                    lax.fori_loop(0, _ROWS, store_query, None)

        fetch_queries(jnp.int32(0))
        pl.when(warpgroup == 1)(meet)
        lax.fori_loop(0, num_mine, attend_item, jnp.int32(0))
        pl.when(warpgroup == 0)(meet)
        plgpu.wait_smem_to_gmem(0)

    transforms = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
    stages = plgpu.SMEM((num_stages, key_tile, head_dim), dtype, transforms=transforms)

    def call(q_TNH, *rest):
        return plgpu.kernel(
            body,
            out_type=jax.ShapeDtypeStruct(q_TNH.shape, q_TNH.dtype),
            grid=(shape.num_workers,),
            grid_names=("worker",),
            num_threads=3,
            thread_name="wg",
            scratch_types=[
                plgpu.SMEM((2, _ROWS, head_dim), dtype, transforms=transforms),
                stages,
                stages,
                plgpu.SMEM((2, _ROWS, width), dtype),
                plgpu.Barrier(num_barriers=2),
                plgpu.Barrier(num_barriers=num_stages, num_arrivals=num_copies),
                plgpu.Barrier(num_barriers=num_stages, num_arrivals=num_copies),
                plgpu.Barrier(num_barriers=num_stages, num_arrivals=2),
                plgpu.Barrier(num_barriers=num_stages, num_arrivals=2),
                plgpu.Barrier(num_arrivals=2),
            ],
            compiler_params=plgpu.CompilerParams(approx_math=True),
        )(q_TNH, *rest)

    return call


def _full(shape: tuple[int, int], value: float) -> Array:
    return plgpu.layout_cast(jnp.full(shape, value, jnp.float32), plgpu.Layout.WGMMA)


def _rows_full(value: float) -> Array:
    return plgpu.layout_cast(jnp.full((_ROWS,), value, jnp.float32), plgpu.Layout.WGMMA.reduce(1))
