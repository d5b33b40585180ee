# pyright: basic, reportPrivateImportUsage=false, reportCallIssue=false
# (inlined functions get a context besides what they are called with)
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
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, vector
from jaxtyping import Array

from pallas_kernels.mosaic_gpu.decode_launch import MASKED, DecodeRefs, DecodeShape, part_of
from pallas_kernels.plan import PlanLine

_MOST_AT_ONCE = 16  # parts to be merged
_MERGE_REGISTERS = 100  # of a thread, for parts on their way


def leave_part(shape: DecodeShape, refs: DecodeRefs, part: Array, acc: Array, lse: Array) -> None:
    """Writes a partial result, in float32, to global memory. part: its line there."""
    refs.lse[part] = lse
    if shape.interpret:
        refs.partial[part] = acc[: shape.group]
    else:
        _store_first_rows(refs.partial.at[part], acc)


@plgpu.inline_mgpu(arg_types=(plgpu.RefType(), plgpu.Layout.WGMMA))
def _store_first_rows(_, target, values):
    """As many rows as the target has. The language slices no rows off a product's registers."""
    num_rows = arith.constant(ir.IndexType.get(), target.type.shape[0])
    places = values.layout.thread_idxs(values.shape)
    for (row, column), register in zip(places, values.registers.flat, strict=True):
        with mgpu.when(arith.cmpi(arith.CmpIPredicate.ult, row, num_rows)):
            vector.store(register, target, [row, column])


def merge_if_last(shape: DecodeShape, refs: DecodeRefs, line: PlanLine, row: Array, head: Array) -> None:
    """To be called once a part is left. line: of a worker that begins inside the part's head."""
    leader, last = line.leader, line.num_following
    ticket = _take_ticket(shape, refs, leader)

    @pl.when(ticket == last)
    def _():
        refs.counters[leader] = jnp.int32(0)  # for the next layer
        merged = _merge(shape, refs, leader, last)
        refs.out[row, head] = merged.astype(shape.dtype)


def _take_ticket(shape: DecodeShape, refs: DecodeRefs, leader: Array) -> Array:
    """How many parts of the leader's head were left before this one, which others then see as left."""
    if shape.interpret:
        ticket = refs.counters[leader]
        refs.counters[leader] = ticket + 1
        return ticket
    plgpu.commit_smem()  # all four warps have written their share of the part
    _count(refs.counters.at[pl.ds(leader, 1)], refs.ticket_smem)
    plgpu.commit_smem()
    ticket = refs.ticket_smem[0]
    plgpu.commit_smem()  # read by all before a later ticket overwrites it
    return ticket


@plgpu.inline_mgpu(arg_types=(plgpu.RefType(), plgpu.RefType()))
def _count(_, counter, ticket):
    """The language has no atomic operation that gives the old value. Released to, and acquired from, all
    workers of the device: a part counted is a part visible."""
    with mgpu.single_thread(scope=mgpu.ThreadSubset.WARPGROUP):
        inline_ptx(
            "{ .reg .u32 before; atom.acq_rel.gpu.global.add.u32 before, [$0], 1; st.shared.u32 [$1], before; }",
            memref_ptr(counter),
            memref_ptr(ticket),
            has_side_effects=True,
        )


def _merge(shape: DecodeShape, refs: DecodeRefs, leader: Array, last: Array) -> Array:
    """Parts 0 to `last` of a head in one, [group, H]."""
    size = (shape.group, shape.head_dim)
    at_once = max(1, min(_MOST_AT_ONCE, _MERGE_REGISTERS // (shape.group + shape.group * shape.head_dim // 128)))

    def add(chunk, carry):
        """Some parts at once, so that their loads wait for memory together."""
        acc, tops, totals = carry
        numbers = [chunk * at_once + i for i in range(at_once)]
        lines = [part_of(shape, leader + jnp.minimum(n, last), n == 0) for n in numbers]
        parts = [refs.partial[i] for i in lines]
        values = [
            [jnp.where(n <= last, refs.lse[i, row], MASKED) for row in range(shape.group)]
            for n, i in zip(numbers, lines, strict=True)
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
    acc, _, totals = lax.fori_loop(0, lax.div(last, at_once) + 1, add, start)
    return acc * _by_row([1 / total for total in totals], size)


def _by_row(scalars: Sequence[Array], shape: tuple[int, int]) -> Array:
    """Line r of the array holds scalars[r] throughout."""
    rows = lax.broadcasted_iota(jnp.int32, shape, 0)
    out = jnp.full(shape, scalars[0])
    for row, scalar in enumerate(scalars[1:], 1):
        out = jnp.where(rows == row, scalar, out)
    return out
