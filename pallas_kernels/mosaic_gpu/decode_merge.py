# pyright: basic, reportPrivateImportUsage=false
"""Heads that several workers share: each leaves its part in global memory, the last one to do so joins them.

Nobody waits for anybody: a worker counts its part as left and goes on, or finds that it was the last.
"""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu.utils import inline_ptx, memref_ptr
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from pallas_kernels.mosaic_gpu.decode_launch import MASKED, DecodeRefs, DecodeShape, plan_line

_MERGED_AT_ONCE = 8  # partial results


def leave_part(shape: DecodeShape, refs: DecodeRefs, index: Array, acc: Array, lse: Array) -> None:
    """Copies a partial result to global memory. What rounding took goes into a second array: merged results
    are as good as float32. On return the copies are done; `out_smem` is free."""
    values = refs.out_smem.at[pl.ds(0, shape.copied_rows)]
    rounded = acc.astype(shape.dtype)
    refs.out_smem[...] = rounded
    refs.lse_smem[...] = lse
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(values, refs.partial.at[index, 0, pl.ds(0, shape.copied_rows)])
    plgpu.copy_smem_to_gmem(refs.lse_smem, refs.lse.at[index])
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    refs.out_smem[...] = (acc - rounded.astype(jnp.float32)).astype(shape.dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(values, refs.partial.at[index, 1, pl.ds(0, shape.copied_rows)])
    plgpu.wait_smem_to_gmem(0)


def merge_if_last(shape: DecodeShape, refs: DecodeRefs, worker: Array, row: Array, head: Array) -> None:
    """To be called once a part is left. worker: one that begins inside the part's head."""
    line = plan_line(refs, worker)
    leader, is_second, last = line.leader, line.is_second, line.num_following
    ticket = _take_ticket(shape, refs, leader)

    @pl.when(ticket == last)
    def _():
        refs.counters[leader] = jnp.int32(0)  # for the next layer
        merged = _merge(shape, refs, leader, is_second, last)
        refs.out[row, head] = merged.astype(shape.dtype)


def _take_ticket(shape: DecodeShape, refs: DecodeRefs, leader: Array) -> Array:
    """How many parts of the leader's head were left before this one, which others then see as left."""
    if shape.interpret:
        ticket = refs.counters[leader]
        refs.counters[leader] = ticket + 1
        return ticket
    _count(refs.counters.at[pl.ds(leader, 1)], refs.ticket_smem)
    plgpu.commit_smem()
    ticket = refs.ticket_smem[0]
    plgpu.commit_smem()  # read by all before a later ticket overwrites it
    return ticket


@plgpu.inline_mgpu(arg_types=(plgpu.RefType(), plgpu.RefType()))
def _count(_, counter, ticket):
    """The language has no atomic operation that gives the old value.

    Released to, and acquired from, all workers of the device: a part counted is a part visible. The parts
    were written by the copy engine and are read by plain loads, hence the proxy fence.
    """
    with mgpu.single_thread(scope=mgpu.ThreadSubset.WARPGROUP):
        inline_ptx(
            "{ .reg .u32 before; fence.proxy.async; atom.acq_rel.gpu.global.add.u32 before, [$0], 1;"
            " fence.proxy.async; st.shared.u32 [$1], before; }",
            memref_ptr(counter),
            memref_ptr(ticket),
            has_side_effects=True,
        )


def _merge(shape: DecodeShape, refs: DecodeRefs, leader: Array, is_second: Array, last: Array) -> Array:
    """Parts 0 to `last` of a head in one, [group, H]."""
    size = (shape.group, shape.head_dim)

    def add(chunk, carry):
        """Some parts at once, so that their loads wait for memory together."""
        acc, tops, totals = carry
        numbers = [chunk * _MERGED_AT_ONCE + i for i in range(_MERGED_AT_ONCE)]
        indices = [_part_index(leader, is_second, jnp.minimum(n, last)) for n in numbers]
        parts = [refs.partial[i, 0].astype(jnp.float32) + refs.partial[i, 1].astype(jnp.float32) for i in indices]
        values = [
            [jnp.where(n <= last, refs.lse[i, row], MASKED) for row in range(shape.group)]
            for n, i in zip(numbers, indices, strict=True)
        ]
        new_tops = [functools.reduce(jnp.maximum, column, top) for top, *column in zip(tops, *values, strict=True)]
        kept = [jnp.exp2(top - new) for top, new in zip(tops, new_tops, strict=True)]
        weights = [[jnp.exp2(v - new) for v, new in zip(value, new_tops, strict=True)] for value in values]
        totals = [sum(column, total * keep) for total, keep, *column in zip(totals, kept, *weights, strict=True)]
        acc = acc * _by_row(kept, size)
        for part, weight in zip(parts, weights, strict=True):
            acc = acc + part * _by_row(weight, size)
        return acc, tuple(new_tops), tuple(totals)

    nothing = (jnp.float32(0.0),) * shape.group
    start = (jnp.zeros(size, jnp.float32), (jnp.float32(MASKED),) * shape.group, nothing)
    acc, _, totals = lax.fori_loop(0, lax.div(last, _MERGED_AT_ONCE) + 1, add, start)
    return acc * _by_row([1 / total for total in totals], size)


def _part_index(leader: Array, is_second: Array, number: Array) -> Array:
    """The leader's part is its first or second one; of the workers that go on it is the first."""
    return 2 * (leader + number) + jnp.where(number == 0, is_second, 0)


def _by_row(scalars: Sequence[Array], shape: tuple[int, int]) -> Array:
    """Line r of the array holds scalars[r] throughout."""
    rows = lax.broadcasted_iota(jnp.int32, shape, 0)
    out = jnp.full(shape, scalars[0])
    for row, scalar in enumerate(scalars[1:], 1):
        out = jnp.where(rows == row, scalar, out)
    return out
