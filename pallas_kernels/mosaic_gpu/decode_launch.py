# pyright: basic, reportPrivateImportUsage=false, reportAbstractUsage=false
"""What one launch of the decode kernel is made of: its static shape and the references its body gets."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from pallas_kernels.mosaic_gpu.widen import is_narrow, landing
from pallas_kernels.plan import FirstTile, PlanLine

TILE = 64  # keys of one step: the least a wgmma over keys can take
OPERAND_ROWS = 64  # of a wgmma operand: the query heads of one KV head are its first rows
MASKED = -1e30


@dataclass(frozen=True)
class DecodeShape:
    """Known when the kernel is compiled.

    group: query heads of one KV head. num_workers: warpgroups, each a block of its own; num_stages:
    tiles of keys and values each keeps in flight. interpret: written for the interpreter on a CPU, which
    has no products with registers, no copies past an array's end and no atomics.
    """

    num_rows: int
    num_kv_heads: int
    group: int
    head_dim: int
    num_pages: int
    page_size: int
    num_columns: int
    dtype: Any
    pool_dtype: Any
    num_workers: int
    num_stages: int
    scale: float
    sliding_window: int | None
    logit_softcap: float | None
    interpret: bool

    @property
    def slot_rows(self) -> int:
        """Rows of shared memory for a group's queries: whole tiles of 8."""
        return -(-self.group // 8) * 8

    @property
    def copied_rows(self) -> int:
        """Rows that a copy of a group names. TMA fills what lies past the group with zeros, and does not write it."""
        return self.group if self.interpret else self.slot_rows

    @property
    def widens(self) -> bool:
        return is_narrow(self.pool_dtype)

    @property
    def value_dtype(self) -> Any:
        """Of values and their weights when they are multiplied. Weights are 0 to 1: float16 holds them better than
        bfloat16, and 8 bits become it in a quarter of the instructions."""
        return jnp.float16 if self.widens else self.dtype

    @property
    def copies_per_tile(self) -> int:
        return max(1, TILE // self.page_size)

    def outputs(self) -> list[jax.ShapeDtypeStruct]:
        """The result, and of each worker's two partial results the values and log2 of the sums."""
        return [
            jax.ShapeDtypeStruct((self.num_rows, self.num_kv_heads, self.group, self.head_dim), self.dtype),
            jax.ShapeDtypeStruct((2 * self.num_workers, self.group, self.head_dim), jnp.float32),
            jax.ShapeDtypeStruct((2 * self.num_workers, OPERAND_ROWS), jnp.float32),
        ]

    def scratch(self) -> list[Any]:
        """In the order of `DecodeRefs`."""
        transforms = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
        if self.widens:
            stages = landing(self.num_stages, TILE, self.head_dim, self.pool_dtype)
        else:
            stages = plgpu.SMEM((self.num_stages, TILE, self.head_dim), self.dtype, transforms=transforms)
        wide = [
            plgpu.SMEM((TILE, self.head_dim), dtype, transforms=transforms) for dtype in (self.dtype, self.value_dtype)
        ]
        filled = plgpu.Barrier(num_barriers=self.num_stages, num_arrivals=self.copies_per_tile)
        return [
            # Two groups of queries; the operand that begins with the second ends `slot_rows` later.
            plgpu.SMEM((OPERAND_ROWS + self.slot_rows, self.head_dim), self.dtype, transforms=transforms),
            plgpu.SMEM((OPERAND_ROWS, self.head_dim), self.dtype, transforms=transforms),
            stages,
            stages,
            plgpu.SMEM((1,), jnp.int32),
            plgpu.Barrier(),
            filled,
            filled,
            *(wide if self.widens else ()),
        ]


class DecodeRefs(NamedTuple):
    """Global memory, then what a worker has to itself: shared memory and barriers."""

    q: Any  # [B, K, G, H]
    pool: Any  # [P, 2, K, Z, H]
    table: Any  # [B, M]
    lens: Any  # [B]
    plan: Any  # [W, I], a `PlanLine` a worker and what `plan_first_tiles` gives
    counters: Any  # [W] parts of a head left so far; 0 between launches
    out: Any
    partial: Any
    lse: Any
    q_smem: Any
    out_smem: Any
    k_smem: Any
    v_smem: Any
    ticket_smem: Any
    q_ready: Any
    k_ready: Any
    v_ready: Any
    k_wide: Any = None  # of an 8-bit pool: the tile at work, widened
    v_wide: Any = None


def plan_line(refs: DecodeRefs, worker: Array) -> PlanLine:
    return PlanLine(*(refs.plan[worker, i] for i in range(len(PlanLine._fields))))


def first_tile(shape: DecodeShape, refs: DecodeRefs, worker: Array, number: int) -> FirstTile:
    """number: 0 to num_stages - 1."""
    size = 2 + shape.copies_per_tile
    head, tile, *pages = (refs.plan[worker, len(PlanLine._fields) + number * size + i] for i in range(size))
    return FirstTile(head, tile, pages)


def place_after_first(shape: DecodeShape, refs: DecodeRefs, worker: Array) -> tuple[Array, Array, Array]:
    """Row, head and tile that follow the first num_stages tiles."""
    begin = len(PlanLine._fields) + shape.num_stages * (2 + shape.copies_per_tile)
    row, head, tile = (refs.plan[worker, begin + i] for i in range(3))
    return row, head, tile


def part_of(shape: DecodeShape, worker: Array, is_first: Array) -> Array:
    """The line of a worker's partial result: of the head that it begins, or of the one that it goes on with."""
    return worker + jnp.where(is_first, 0, shape.num_workers)
