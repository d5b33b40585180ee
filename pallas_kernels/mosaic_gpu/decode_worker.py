# pyright: basic, reportPrivateImportUsage=false, reportReturnType=false
# (the kernel language hands untyped references to its bodies)
"""What one worker of the decode kernel does: its run of key tiles, segment by segment.

A worker is one warpgroup. It keeps `num_stages` tiles of 64 keys and values in flight and refills a
stage as soon as its products are done, across the borders of rows and heads, so the memory system
never waits for a softmax. The query heads that share a KV head sit in the first rows of a 64-row
operand; the other rows are whatever lies there, and only ever reach rows of results that nobody reads.
Padding costs tensor-core time, which a memory-bound kernel has to spare.
Softmax is the online one of FlashAttention (arXiv 2205.14135), in base 2.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from pallas_kernels.mosaic_gpu.decode_launch import (
    MASKED,
    OPERAND_ROWS,
    TILE,
    DecodeRefs,
    DecodeShape,
    first_tile,
    part_of,
    place_after_first,
    plan_line,
)
from pallas_kernels.mosaic_gpu.decode_merge import leave_part, merge_if_last
from pallas_kernels.mosaic_gpu.widen import widen
from pallas_kernels.plan import FirstTile, tile_range

_LOG2_E = math.log2(math.e)


class Place(NamedTuple):
    """A tile in the line of all tiles; `tile` counts from the first that the row sees."""

    row: Array
    head: Array
    tile: Array


class Softmax(NamedTuple):
    """Of the tiles so far: weighted values [64, H], largest score and sum of weights [64]."""

    acc: Array
    top: Array
    total: Array


def work(shape: DecodeShape, *references: Any) -> None:
    """The kernel's body."""
    refs = DecodeRefs(*references)
    worker = lax.axis_index("worker")
    line = plan_line(refs, worker)
    place = Place(line.row, line.head, line.tile)

    @pl.when(line.num_segments > 0)
    def _():
        _fetch_queries(shape, refs, place, jnp.int32(0))

    # Keys and values of the first tiles are on their way before the row's length and table are looked up.
    for stage in range(shape.num_stages):
        _fetch_first(shape, refs, first_tile(shape, refs, worker, stage), stage, line.num_tiles)
    cursor = Place(*place_after_first(shape, refs, worker))
    _clear_idle_rows(shape, refs, worker, line.num_used)

    def segment(number, carry):
        return _segment(shape, refs, worker, number, *carry)

    lax.fori_loop(0, line.num_segments, segment, (jnp.int32(0), place, cursor))
    plgpu.wait_smem_to_gmem(0)


def _clear_idle_rows(shape: DecodeShape, refs: DecodeRefs, worker: Array, num_used: Array) -> None:
    """Zeros for the heads of rows without a context, which all come last, dealt out to all workers."""
    num_idle = (shape.num_rows - num_used) * shape.num_kv_heads

    @pl.when(worker < num_idle)
    def _():
        refs.out_smem[...] = _full((OPERAND_ROWS, shape.head_dim), 0.0).astype(shape.dtype)
        plgpu.commit_smem()

        def clear(i, nothing):
            head = worker + i * shape.num_workers
            row = num_used + lax.div(head, shape.num_kv_heads)
            _store_head(shape, refs, row, lax.rem(head, shape.num_kv_heads))
            return nothing

        lax.fori_loop(0, lax.div(num_idle - worker + shape.num_workers - 1, shape.num_workers), clear, 0)


def _store_head(shape: DecodeShape, refs: DecodeRefs, row: Array, head: Array) -> None:
    values = refs.out_smem.at[pl.ds(0, shape.copied_rows)]
    plgpu.copy_smem_to_gmem(values, refs.out.at[row, head, pl.ds(0, shape.copied_rows)])


def _range_of(shape: DecodeShape, refs: DecodeRefs, row: Array) -> tuple[Array, Array, Array]:
    """Of a row its context length, first tile and number of tiles."""
    context_len = refs.lens[jnp.minimum(row, shape.num_rows - 1)]
    return context_len, *tile_range(context_len, TILE, shape.sliding_window)


def _advance(shape: DecodeShape, place: Place, tiles_of_row: Array) -> Place:
    """The next tile in line."""
    ends = place.tile + 1 >= tiles_of_row
    next_head = jnp.where(ends, place.head + 1, place.head)
    wraps = next_head >= shape.num_kv_heads
    return Place(
        jnp.where(wraps, place.row + 1, place.row),
        jnp.where(wraps, 0, next_head),
        jnp.where(ends, 0, place.tile + 1),
    )


def _fetch_queries(shape: DecodeShape, refs: DecodeRefs, place: Place, segment: Array) -> None:
    """Start the copy of a segment's queries; segments use the two slots in turn."""
    target = refs.q_smem.at[pl.ds(_query_slot(shape, segment), shape.copied_rows)]
    source = refs.q.at[place.row, place.head, pl.ds(0, shape.copied_rows)]
    plgpu.copy_gmem_to_smem(source, target, refs.q_ready)


def _query_slot(shape: DecodeShape, segment: Array) -> Array:
    return pl.multiple_of(lax.rem(segment, 2) * shape.slot_rows, shape.slot_rows)


def _fetch_first(shape: DecodeShape, refs: DecodeRefs, first: FirstTile, stage: int, num_tiles: Array) -> None:
    """Fetch one of the worker's first tiles into a stage that nobody has used yet."""

    @pl.when(stage < num_tiles)
    def _():
        for copy, page in enumerate(first.pages):
            _copy_page(shape, refs, page, first.head, first.tile, copy, jnp.int32(stage))


def _fetch_next(shape: DecodeShape, refs: DecodeRefs, index: Array, num_tiles: Array, cursor: Place) -> Place:
    """Fetch the worker's tile `index`, if it has so many; the cursor moves on."""
    first, tiles_of_row = _range_of(shape, refs, cursor.row)[1:]

    @pl.when(index < num_tiles)
    def _():
        _fetch(shape, refs, cursor._replace(tile=first + cursor.tile), lax.rem(index, shape.num_stages))

    return _advance(shape, cursor, tiles_of_row)


def _fetch(shape: DecodeShape, refs: DecodeRefs, place: Place, slot: Array) -> None:
    """Start the copies of one tile of keys and values."""
    row, head, tile = place
    for copy in range(shape.copies_per_tile):
        column = tile * shape.copies_per_tile + copy
        if shape.page_size > TILE:
            column = lax.div(tile * TILE, shape.page_size)
        page = jnp.clip(refs.table[row, jnp.minimum(column, shape.num_columns - 1)], 0, shape.num_pages - 1)
        _copy_page(shape, refs, page, head, tile, copy, slot)


def _copy_page(
    shape: DecodeShape, refs: DecodeRefs, page: Array, head: Array, tile: Array, copy: int, slot: Array
) -> None:
    """A page of a tile, or the tile's part of a larger page: `copy` counts a tile's pages."""
    page_size = shape.page_size
    for which, smem, ready in ((0, refs.k_smem, refs.k_ready), (1, refs.v_smem, refs.v_ready)):
        if page_size <= TILE:
            source = refs.pool.at[page, which, head]
            target = smem.at[slot, pl.ds(copy * page_size, page_size)]
        else:
            source = refs.pool.at[page, which, head, pl.ds(lax.rem(tile * TILE, page_size), TILE)]
            target = smem.at[slot]
        plgpu.copy_gmem_to_smem(source, target, ready.at[slot])


def _segment(
    shape: DecodeShape, refs: DecodeRefs, worker: Array, number: Array, done: Array, place: Place, cursor: Place
) -> tuple[Array, Place, Place]:
    """One head's tiles of this worker. done: tiles before; place: where the segment begins; cursor: what to fetch."""
    line = plan_line(refs, worker)
    context_len, first, tiles_of_row = _range_of(shape, refs, place.row)
    count = jnp.minimum(tiles_of_row - place.tile, line.num_tiles - done)
    following = _advance(shape, place._replace(tile=place.tile + count - 1), tiles_of_row)
    plgpu.barrier_wait(refs.q_ready)

    @pl.when(number + 1 < line.num_segments)
    def _():
        _fetch_queries(shape, refs, following, number + 1)

    def tile(i, carry):
        softmax, cursor = carry
        slot = lax.rem(done + i, shape.num_stages)
        base = (first + place.tile + i) * TILE
        if shape.widens:
            _widen_tile(shape, refs, slot)
            cursor = _fetch_next(shape, refs, done + i + shape.num_stages, line.num_tiles, cursor)
        softmax = _attend_tile(shape, refs, number, slot, base, context_len, softmax)
        plgpu.commit_smem()  # all four warps are done with the stage, or with the widened tile
        if not shape.widens:
            cursor = _fetch_next(shape, refs, done + i + shape.num_stages, line.num_tiles, cursor)
        return softmax, cursor

    start = Softmax(_full((OPERAND_ROWS, shape.head_dim), 0.0), _rows_full(MASKED), _rows_full(0.0))
    softmax, cursor = lax.fori_loop(0, count, tile, (start, cursor))
    _leave(shape, refs, worker, number, place, count == tiles_of_row, softmax)
    return done + count, following, cursor


def _widen_tile(shape: DecodeShape, refs: DecodeRefs, slot: Array) -> None:
    """Afterwards the stage may be filled again."""
    rows_at_once = TILE if shape.head_dim <= 128 else 16  # the accumulator of wide heads leaves few registers
    for stages, ready, wide in ((refs.k_smem, refs.k_ready, refs.k_wide), (refs.v_smem, refs.v_ready, refs.v_wide)):
        plgpu.barrier_wait(ready.at[slot])
        widen(stages.at[slot], wide, rows_at_once=rows_at_once, interpret=shape.interpret)
    plgpu.commit_smem()


def _attend_tile(
    shape: DecodeShape, refs: DecodeRefs, number: Array, slot: Array, base: Array, context_len: Array, softmax: Softmax
) -> Softmax:
    """Add the keys and values of positions base … base + 63."""
    if shape.widens:
        keys_ref, values_ref = refs.k_wide, refs.v_wide
    else:
        keys_ref, values_ref = refs.k_smem.at[slot], refs.v_smem.at[slot]
        plgpu.barrier_wait(refs.k_ready.at[slot])
    scores = _scores(shape, refs, number, keys_ref)
    keys = plgpu.broadcasted_iota(jnp.int32, scores.shape, 1, layout=plgpu.Layout.WGMMA) + base
    seen = keys < context_len
    if shape.sliding_window is not None:
        seen = seen & (keys >= context_len - shape.sliding_window)
    scores = jnp.where(seen, scores, MASKED)
    top = jnp.maximum(softmax.top, scores.max(axis=1))
    keep = jnp.exp2(softmax.top - top)
    weights = jnp.exp2(scores - lax.broadcast_in_dim(top, scores.shape, [0]))
    total = softmax.total * keep + weights.sum(axis=1)
    acc = softmax.acc * lax.broadcast_in_dim(keep, softmax.acc.shape, [0])
    if not shape.widens:
        plgpu.barrier_wait(refs.v_ready.at[slot])
    _blank_unwritten(shape, values_ref, base, context_len)
    return Softmax(_add_values(shape, values_ref, weights.astype(shape.value_dtype), acc), top, total)


def _scores(shape: DecodeShape, refs: DecodeRefs, number: Array, keys: Any) -> Array:
    """Scaled, capped scores in base 2, [64, 64]."""
    if shape.interpret:
        queries = refs.q_smem[pl.ds(_query_slot(shape, number), shape.group)]
        queries = jnp.pad(queries, ((0, OPERAND_ROWS - shape.group), (0, 0)))
        scores = jnp.dot(queries, keys[...].T, preferred_element_type=jnp.float32)
    else:
        queries = refs.q_smem.at[pl.ds(_query_slot(shape, number), OPERAND_ROWS)]

        def multiply(acc_ref):
            plgpu.wgmma(acc_ref, queries, keys.transpose((1, 0)))
            return acc_ref[...]

        scores = pl.run_scoped(multiply, plgpu.ACC((OPERAND_ROWS, TILE), jnp.float32))
    if shape.logit_softcap is None:
        return scores * (shape.scale * _LOG2_E)
    return shape.logit_softcap * jnp.tanh(scores * (shape.scale / shape.logit_softcap)) * _LOG2_E


def _blank_unwritten(shape: DecodeShape, values_ref: Any, base: Array, context_len: Array) -> None:
    """Beyond the row's end a page holds anything, and 0 times NaN is NaN."""

    @pl.when(base + TILE > context_len)
    def _():
        for column in range(0, shape.head_dim, 64):  # a whole tile of wide heads has no room beside the accumulator
            part = values_ref.at[:, pl.ds(column, 64)]
            values = plgpu.load(part, layout=plgpu.Layout.WGMMA, optimized=False)
            positions = plgpu.broadcasted_iota(jnp.int32, values.shape, 0, layout=plgpu.Layout.WGMMA) + base
            part[...] = jnp.where(positions < context_len, values, jnp.zeros_like(values))
        plgpu.commit_smem()


def _add_values(shape: DecodeShape, values: Any, weights: Array, acc: Array) -> Array:
    if shape.interpret:
        return acc + jnp.dot(weights, values[...], preferred_element_type=jnp.float32)

    def multiply(acc_ref):
        plgpu.wgmma(acc_ref, weights, values)

    return pl.run_state(multiply)(plgpu.ACC.init(acc))


def _leave(
    shape: DecodeShape,
    refs: DecodeRefs,
    worker: Array,
    number: Array,
    place: Place,
    reaches_end: Array,
    softmax: Softmax,
) -> None:
    """Write a whole head's result, or a part of one; the last part left joins them all."""
    acc = softmax.acc * lax.broadcast_in_dim(1 / jnp.maximum(softmax.total, 1e-30), softmax.acc.shape, [0])
    begins = place.tile == 0

    @pl.when(reaches_end & begins)
    def _():
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # the head before has left `out_smem`
        refs.out_smem[...] = acc.astype(shape.dtype)
        plgpu.commit_smem()
        _store_head(shape, refs, place.row, place.head)

    @pl.when(jnp.logical_not(reaches_end & begins))
    def _():
        # A head begun here is gone on with by the next worker. Its line is on its way while the part is stored.
        line = plan_line(refs, worker + jnp.where(begins, 1, 0))
        leave_part(shape, refs, part_of(shape, worker, begins), acc, softmax.top + jnp.log2(softmax.total))
        merge_if_last(shape, refs, line, place.row, place.head)


def _full(shape: tuple[int, int], value: float) -> Array:
    return plgpu.layout_cast(jnp.full(shape, value, jnp.float32), plgpu.Layout.WGMMA)


def _rows_full(value: float) -> Array:
    return plgpu.layout_cast(jnp.full((OPERAND_ROWS,), value, jnp.float32), plgpu.Layout.WGMMA.reduce(1))
