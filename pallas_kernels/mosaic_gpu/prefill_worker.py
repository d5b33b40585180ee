# pyright: basic, reportPrivateImportUsage=false, reportAbstractUsage=false, reportReturnType=false
# (the kernel language hands untyped references to its bodies)
"""What a worker of the prefill kernel does: one warpgroup fetches keys and values, two multiply in turns."""

import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from pallas_kernels.mosaic_gpu.prefill_launch import ROWS, PrefillRefs, PrefillShape, count_pieces, piece
from pallas_kernels.mosaic_gpu.prefill_plan import ALIGNMENT, PrefillItem
from pallas_kernels.mosaic_gpu.widen import widen

_KEYS, _VALUES = 0, 1  # where they lie in a page
_MASKED = -1e30
_LOWEST = -1e20  # where maxima start: above a masked score times any factor, so that a wholly masked tile weighs 0
_LOG2_E = math.log2(math.e)
_Carry = tuple[Array, Array, Array]  # weighted sum of values, maximum (of log2), sum of weights


def work(shape: PrefillShape, *refs) -> None:
    """Body of the kernel.

    A block starts with 168 registers a thread, 504 over its warpgroups, and can only deal these out anew:
    asking for more waits for ever.
    """
    refs = PrefillRefs(*refs)

    @pl.when(_warpgroup() == 2)
    def _():
        plgpu.set_max_registers(24, action="decrease")
        _fetch_all(shape, refs)

    @pl.when(_warpgroup() < 2)
    def _():
        plgpu.set_max_registers(240, action="increase")
        _attend_all(shape, refs)


def _fetch_all(shape: PrefillShape, refs: PrefillRefs) -> None:
    """Keep the stages full, from one piece of work to the next."""

    def wait_until_read(step):
        for which in (_KEYS, _VALUES):
            plgpu.barrier_wait(refs.read.at[shape.barrier(which, step)])

    def fetch_piece(turn, done):
        item, unit = piece(shape, refs, turn)
        kv_head = lax.div(shape.head(unit, 0), shape.num_heads // shape.num_kv_heads)

        if shape.widens:
            _widen_piece(shape, refs, item, kv_head, done)
            return done + item.num_tiles

        def fetch_tile(step, _):
            tile, slot = item.first_tile - done + step, lax.rem(step, shape.num_stages)
            pages = _pages(shape, refs, item.row, tile)
            for which, smem in ((_KEYS, refs.k_smem), (_VALUES, refs.v_smem)):
                barrier = shape.barrier(which, step)

                @pl.when(step >= shape.num_stages)
                def _(barrier=barrier):
                    plgpu.barrier_wait(refs.read.at[barrier])

                _fetch(shape, refs, pages, (which, kv_head), tile, smem.at[slot], refs.ready.at[barrier])

        lax.fori_loop(done, done + item.num_tiles, fetch_tile, None)
        return done + item.num_tiles

    done = lax.fori_loop(0, count_pieces(shape, refs), fetch_piece, jnp.int32(0))
    # Nothing depends on it, but the interpreter wants every barrier seen to its end.
    lax.fori_loop(jnp.maximum(done - shape.num_stages, 0), done, lambda step, _: wait_until_read(step), None)


def _widen_piece(shape: PrefillShape, refs: PrefillRefs, item: PrefillItem, kv_head: Array, done: Array) -> None:
    """Fetch and widen the tiles of one piece. While one is widened the next is on its way."""
    last_step = done + item.num_tiles

    def place(which):
        return which % shape.num_landings

    def fetch(which, step):
        @pl.when(step < last_step)
        def _():
            tile = item.first_tile - done + step
            target, ready = refs.landing.at[place(which)], refs.landed.at[place(which)]
            _fetch_few_at_once(shape, refs, item.row, (which, kv_head), tile, target, ready)

    def widen_tile(step, _):
        slot = lax.rem(step, shape.num_stages)
        for which, smem in ((_KEYS, refs.k_smem), (_VALUES, refs.v_smem)):
            barrier = shape.barrier(which, step)
            plgpu.barrier_wait(refs.landed.at[place(which)])

            @pl.when(step >= shape.num_stages)
            def _(barrier=barrier):
                plgpu.barrier_wait(refs.read.at[barrier])

            rows_at_once = 2048 // min(shape.head_dim, 128)  # registers are few here
            widen(refs.landing.at[place(which)], smem.at[slot], rows_at_once=rows_at_once, interpret=shape.interpret)
            plgpu.commit_smem()  # all four warps have read the one and written the other
            plgpu.barrier_arrive(refs.ready.at[barrier])
            if shape.num_landings == 2:
                fetch(which, step + 1)
            else:
                fetch(*((_VALUES, step) if which == _KEYS else (_KEYS, step + 1)))

    for which in (_KEYS, _VALUES)[: shape.num_landings]:
        fetch(which, done)
    lax.fori_loop(done, last_step, widen_tile, None)


def _pages(shape: PrefillShape, refs: PrefillRefs, row: Array, tile: Array) -> list[Array]:
    """The pages that hold a tile of keys."""
    if shape.page_size <= shape.key_tile:
        columns = [tile * shape.copies_per_tile + copy for copy in range(shape.copies_per_tile)]
    else:
        columns = [lax.div(tile * shape.key_tile, shape.page_size)]
    return [_page(shape, refs, row, column) for column in columns]


def _page(shape: PrefillShape, refs: PrefillRefs, row: Array, column: Array) -> Array:
    return jnp.clip(refs.table[row, jnp.minimum(column, shape.num_columns - 1)], 0, shape.num_pages - 1)


def _fetch(shape: PrefillShape, refs: PrefillRefs, pages: Sequence[Array], where, tile, smem, ready) -> None:
    for copy, page in enumerate(pages):
        if shape.page_size <= shape.key_tile:
            source, target = refs.pool.at[page, *where], smem.at[pl.ds(copy * shape.page_size, shape.page_size)]
        else:
            first = lax.rem(tile * shape.key_tile, shape.page_size)
            source, target = refs.pool.at[page, *where, pl.ds(first, shape.key_tile)], smem
        plgpu.copy_gmem_to_smem(source, target, ready)


def _fetch_few_at_once(shape: PrefillShape, refs: PrefillRefs, row: Array, where, tile: Array, smem, ready) -> None:
    """Beside widening there are no registers for the pages of a whole tile of small ones."""
    at_once = 4
    if shape.copies_per_tile <= at_once:
        _fetch(shape, refs, _pages(shape, refs, row, tile), where, tile, smem, ready)
        return

    def fetch_some(turn, _):
        copies = [turn * at_once + i for i in range(at_once)]
        pages = [_page(shape, refs, row, tile * shape.copies_per_tile + copy) for copy in copies]
        for copy, page in zip(copies, pages, strict=True):
            first = pl.multiple_of(copy * shape.page_size, shape.page_size)
            plgpu.copy_gmem_to_smem(refs.pool.at[page, *where], smem.at[pl.ds(first, shape.page_size)], ready)

    # A bound that is always the first, but not to the compiler, which would unroll the loop and run out of registers.
    num_turns = jnp.minimum(shape.copies_per_tile // at_once, tile + shape.copies_per_tile)
    lax.fori_loop(0, num_turns, fetch_some, None)


def _attend_all(shape: PrefillShape, refs: PrefillRefs) -> None:
    num_pieces = count_pieces(shape, refs)

    def fetch_queries(turn):
        """Not left to the fetching warpgroup, which would wait for both, while one waits for the other's turn."""

        @pl.when(turn < num_pieces)
        def _():
            item, unit = piece(shape, refs, turn)
            queries = pl.ds(pl.multiple_of(shape.first_query(item, _warpgroup()), ALIGNMENT), ROWS)
            plgpu.copy_gmem_to_smem(
                refs.q.at[queries, shape.head(unit, _warpgroup())],
                refs.q_smem.at[_warpgroup()],
                refs.q_ready.at[_warpgroup()],
            )

    def attend_piece(turn, done):
        out, done = _attend(shape, refs, turn, done)
        _store(shape, refs, turn, out)
        fetch_queries(turn + 1)  # all four warps are done with the old ones: `_store` synchronised them
        return done

    fetch_queries(jnp.int32(0))
    pl.when(_warpgroup() == 1)(lambda: _meet(refs))
    lax.fori_loop(0, num_pieces, attend_piece, jnp.int32(0))
    pl.when(_warpgroup() == 0)(lambda: _meet(refs))
    plgpu.wait_smem_to_gmem(0)


def _meet(refs: PrefillRefs) -> None:
    plgpu.barrier_arrive(refs.turn)
    plgpu.barrier_wait(refs.turn)


def _attend(shape: PrefillShape, refs: PrefillRefs, turn: Array, done: Array) -> tuple[Array, Array]:
    """The outputs of one piece, and how many tiles of keys the worker has then gone through."""
    item, _ = piece(shape, refs, turn)
    # Steps are counted through all of a worker's pieces, and keys from where step 0 of this piece's row would be.
    key_shift = (done - item.first_tile) * shape.key_tile
    first_position = shape.first_query(item, _warpgroup()) + item.offset + key_shift
    end = item.stop + item.offset + key_shift
    last_step = done + item.num_tiles

    def step(i, carry, *, masked):
        base = i * shape.key_tile
        mask = _mask(shape, first_position - base) if masked else None
        clear = (lambda slot: _clear_beyond(shape, refs, slot, end - base)) if masked else None
        return _step(shape, refs, i, last_step, carry, mask, clear)

    plgpu.barrier_wait(refs.q_ready.at[_warpgroup()])
    pl.when(item.num_tiles > 0)(lambda: plgpu.barrier_wait(refs.ready.at[shape.barrier(_KEYS, done)]))
    carry = (_full((ROWS, shape.head_dim), 0.0), _rows_full(_LOWEST), _rows_full(0.0))
    first_masked = done
    if shape.sliding_window is None:
        first_masked = done + item.masked_tile - item.first_tile
        carry = lax.fori_loop(done, first_masked, lambda i, carry: step(i, carry, masked=False), carry)
    acc, _, total = lax.fori_loop(first_masked, last_step, lambda i, carry: step(i, carry, masked=True), carry)
    acc = acc * lax.broadcast_in_dim(1 / jnp.maximum(total, 1e-30), acc.shape, [0])
    return acc.astype(shape.dtype), last_step


def _step(
    shape: PrefillShape,
    refs: PrefillRefs,
    i: Array,
    last_step: Array,
    carry: _Carry,
    mask: Callable[[Array], Array] | None,
    clear: Callable[[Array], None] | None,
) -> _Carry:
    """One tile of keys and values. mask: applied to the scores; clear: to the values."""
    acc, top, total = carry
    slot = lax.rem(i, shape.num_stages)

    scores = _multiply_keys(shape, refs, slot)
    plgpu.barrier_arrive(refs.read.at[shape.barrier(_KEYS, i)])
    factor = shape.scale * _LOG2_E
    if shape.logit_softcap is not None:
        scores = jnp.tanh(scores * (shape.scale / shape.logit_softcap))
        factor = shape.logit_softcap * _LOG2_E
    if mask is not None:
        scores = mask(scores)
    new_top = jnp.maximum(top, scores.max(axis=1) * factor)
    keep = jnp.exp2(top - new_top)
    weights = jnp.exp2(scores * factor - lax.broadcast_in_dim(new_top, scores.shape, [0]))
    acc = acc * lax.broadcast_in_dim(keep, acc.shape, [0])
    total = total * keep + weights.sum(axis=1)
    weights16 = weights.astype(shape.value_dtype)
    # Nothing of the softmax may move behind the other warpgroup's turn.
    acc, total, new_top, weights16 = lax.optimization_barrier((acc, total, new_top, weights16))
    plgpu.barrier_arrive(refs.turn)
    plgpu.barrier_wait(refs.ready.at[shape.barrier(_VALUES, i)])
    if clear is not None:
        clear(slot)
    plgpu.barrier_wait(refs.turn)

    def wait_for_keys():
        pl.when(i + 1 < last_step)(lambda: plgpu.barrier_wait(refs.ready.at[shape.barrier(_KEYS, i + 1)]))

    acc = _add_values(shape, refs, slot, weights16, acc, wait_for_keys)
    plgpu.barrier_arrive(refs.read.at[shape.barrier(_VALUES, i)])
    return acc, new_top, total


def _multiply_keys(shape: PrefillShape, refs: PrefillRefs, slot: Array) -> Array:
    queries, keys = refs.q_smem.at[_warpgroup()], refs.k_smem.at[slot]
    if shape.interpret:
        scores = jnp.dot(queries[...], keys[...].T, preferred_element_type=jnp.float32)
        plgpu.commit_smem()  # wgmma reads by the proxy that copies write by; plain reads have to be fenced off
        _meet(refs)
        return scores

    def multiply(acc_ref):
        plgpu.wgmma(acc_ref, queries, keys.transpose((1, 0)))
        _meet(refs)  # the other warpgroup may queue its products behind these
        return acc_ref[...]

    return pl.run_scoped(multiply, plgpu.ACC((ROWS, shape.key_tile), jnp.float32))


def _add_values(
    shape: PrefillShape, refs: PrefillRefs, slot: Array, weights: Array, acc: Array, meanwhile: Callable[[], None]
) -> Array:
    values = refs.v_smem.at[slot]
    if shape.interpret:
        meanwhile()
        acc = acc + jnp.dot(weights, values[...], preferred_element_type=jnp.float32)
        plgpu.commit_smem()
        return acc

    def multiply(acc_ref):
        plgpu.wgmma(acc_ref, weights, values)
        meanwhile()

    return pl.run_state(multiply)(plgpu.ACC.init(acc))


def _mask(shape: PrefillShape, first_position: Array) -> Callable[[Array], Array]:
    """first_position: of the warpgroup's first query, counted from the tile's first key."""

    def apply(scores: Array) -> Array:
        queries = plgpu.broadcasted_iota(jnp.int32, scores.shape, 0, layout=plgpu.Layout.WGMMA)
        keys = plgpu.broadcasted_iota(jnp.int32, scores.shape, 1, layout=plgpu.Layout.WGMMA)
        behind = queries + first_position - keys  # how far the key lies back
        seen = behind >= 0
        if shape.sliding_window is not None:
            seen = seen & (behind < shape.sliding_window)
        return jnp.where(seen, scores, _MASKED)

    return apply


def _clear_beyond(shape: PrefillShape, refs: PrefillRefs, slot: Array, end: Array) -> None:
    """Beyond a row's end a page holds anything, and 0 times NaN is NaN. end: of the row, from the tile's first key.

    Both warpgroups do it, each before its own product; what one writes over the other's is the same.
    """

    @pl.when(end < shape.key_tile)
    def _():
        for first_key in range(0, shape.key_tile, 64):
            for column in range(0, shape.head_dim, 64):
                values_ref = refs.v_smem.at[slot, pl.ds(first_key, 64), pl.ds(column, 64)]
                values = plgpu.load(values_ref, layout=plgpu.Layout.WGMMA, optimized=False)
                keys = plgpu.broadcasted_iota(jnp.int32, values.shape, 0, layout=plgpu.Layout.WGMMA)
                values_ref[...] = jnp.where(keys < end - first_key, values, jnp.zeros_like(values))
        plgpu.commit_smem()


def _store(shape: PrefillShape, refs: PrefillRefs, turn: Array, out: Array) -> None:
    """A tile that a row shares with another leaves query by query: it may write its own alone."""
    item, unit = piece(shape, refs, turn)
    first_query, head = shape.first_query(item, _warpgroup()), shape.head(unit, _warpgroup())
    is_whole = (first_query >= item.start) & (first_query + ROWS <= item.stop)
    for part in range(0, shape.head_dim, shape.store_width):
        columns = pl.ds(part, shape.store_width)
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # of the part or piece before
        refs.out_smem[_warpgroup()] = out[:, part : part + shape.store_width]
        plgpu.commit_smem()

        def store(queries, columns=columns):
            target = refs.out.at[pl.ds(first_query + queries.start, queries.size), head, columns]
            plgpu.copy_smem_to_gmem(refs.out_smem.at[_warpgroup(), queries], target)

        @pl.when(is_whole)
        def _(store=store):
            store(pl.ds(0, ROWS))

        @pl.when(jnp.logical_not(is_whole))
        def _(store=store):
            first, last = (jnp.clip(query - first_query, 0, ROWS) for query in (item.start, item.stop))
            lax.fori_loop(first, last, lambda i, _: store(pl.ds(i, 1)), None)


def _warpgroup() -> Array:
    """Asked for where it is needed, like `piece`: kept, it would take a register from the products."""
    return lax.axis_index("wg")


def _full(shape: tuple[int, int], value: float) -> Array:
    return plgpu.layout_cast(jnp.full(shape, value, jnp.float32), plgpu.Layout.WGMMA)


def _rows_full(value: float) -> Array:
    return plgpu.layout_cast(jnp.full((ROWS,), value, jnp.float32), plgpu.Layout.WGMMA.reduce(1))
