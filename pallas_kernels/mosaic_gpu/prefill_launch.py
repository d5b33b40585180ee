# pyright: basic, reportPrivateImportUsage=false, reportAbstractUsage=false
"""What one launch of the prefill kernel is made of: its static shape, its references and a line of its plan."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from pallas_kernels.mosaic_gpu.prefill_plan import PrefillItem, dealt_index
from pallas_kernels.mosaic_gpu.widen import is_narrow, landing

ROWS = 64  # queries of a warpgroup: of a wgmma operand


@dataclass(frozen=True)
class PrefillShape:
    """Known when the kernel is compiled.

    num_workers: blocks of three warpgroups; num_stages: tiles of keys and values that each keeps in flight.
    interpret: written for the interpreter on a CPU, which has no products with registers.
    """

    num_heads: int
    num_kv_heads: int
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
    def pairs_heads(self) -> bool:
        """Whether the two multiplying warpgroups share queries, not a head."""
        return self.num_heads // self.num_kv_heads % 2 == 0

    @property
    def query_tile(self) -> int:
        return ROWS if self.pairs_heads else 2 * ROWS

    @property
    def num_units(self) -> int:
        """Of work in one query tile: pairs of heads, or heads."""
        return self.num_heads // 2 if self.pairs_heads else self.num_heads

    @property
    def key_tile(self) -> int:
        fits = self.page_size % 128 == 0 or 128 % self.page_size == 0
        return 128 if fits and self.head_dim <= 128 else 64

    @property
    def copies_per_tile(self) -> int:
        return max(1, self.key_tile // self.page_size)

    @property
    def store_width(self) -> int:
        """Columns of the outputs that leave together: shared memory has no room for more beside wide heads."""
        return 64 if self.widens and self.head_dim > 128 else min(self.head_dim, 128)

    @property
    def widens(self) -> bool:
        return is_narrow(self.pool_dtype)

    @property
    def value_dtype(self) -> Any:
        """Of values and their weights when they are multiplied: see `DecodeShape.value_dtype`."""
        return jnp.float16 if self.widens else self.dtype

    @property
    def num_landings(self) -> int:
        """Of tiles of 8 bits: one for keys and one for values where there is room, else one for both."""
        return 2 if self.head_dim <= 128 else 1

    def head(self, unit: Array, warpgroup: Array | int) -> Array:
        return 2 * unit + warpgroup if self.pairs_heads else unit

    def first_query(self, item: PrefillItem, warpgroup: Array) -> Array:
        return item.first if self.pairs_heads else item.first + ROWS * warpgroup

    def barrier(self, which: int, step: Array) -> Array:
        """Index of the barrier of a step's keys (0) or values (1)."""
        return lax.rem(step, self.num_stages) + which * self.num_stages

    def scratch(self) -> list[Any]:
        """In the order of `PrefillRefs`."""
        transforms = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
        keys, values = (
            plgpu.SMEM((self.num_stages, self.key_tile, self.head_dim), dtype, transforms=transforms)
            for dtype in (self.dtype, self.value_dtype)
        )
        num_tiles = 2 * self.num_stages
        return [
            plgpu.SMEM((2, ROWS, self.head_dim), self.dtype, transforms=transforms),
            keys,
            values,
            plgpu.SMEM((2, ROWS, self.store_width), self.dtype),
            plgpu.Barrier(num_barriers=2),
            plgpu.Barrier(num_barriers=num_tiles, num_arrivals=1 if self.widens else self.copies_per_tile),
            plgpu.Barrier(num_barriers=num_tiles, num_arrivals=2),
            plgpu.Barrier(num_arrivals=2),
            *(self._landings() if self.widens else ()),
        ]

    def _landings(self) -> list[Any]:
        return [
            landing(self.num_landings, self.key_tile, self.head_dim, self.pool_dtype),
            plgpu.Barrier(num_barriers=self.num_landings, num_arrivals=self.copies_per_tile),
        ]


class PrefillRefs(NamedTuple):
    """Global memory, then what a worker has to itself: shared memory and barriers."""

    q: Any  # [T, N, H]
    pool: Any  # [P, 2, K, Z, H]
    table: Any  # [B, M]
    items: Any  # [I, 8], a `PrefillItem` a query tile, longest first
    num_items: Any  # [1]
    out: Any
    q_smem: Any
    k_smem: Any
    v_smem: Any
    out_smem: Any
    q_ready: Any
    ready: Any  # a barrier a stage of keys, then one a stage of values: two arrays would take two registers
    read: Any
    turn: Any  # both multiplying warpgroups meet here when the tensor cores change hands
    landing: Any = None  # of an 8-bit pool: where its tiles arrive
    landed: Any = None


def count_pieces(shape: PrefillShape, refs: PrefillRefs) -> Array:
    """How many pieces of work (a query tile and a unit) this worker has."""
    total = refs.num_items[0] * shape.num_units
    num_turns = lax.div(total + shape.num_workers - 1, shape.num_workers)
    last = dealt_index(num_turns - 1, lax.axis_index("worker"), shape.num_workers)
    return jnp.where((num_turns > 0) & (last >= total), num_turns - 1, num_turns)


def piece(shape: PrefillShape, refs: PrefillRefs, turn: Array) -> tuple[PrefillItem, Array]:
    """This worker's turn-th piece: the query tile and the unit. Read where needed, not kept: registers are few."""
    index = dealt_index(turn, lax.axis_index("worker"), shape.num_workers)
    line = lax.div(index, shape.num_units)
    item = PrefillItem(*(refs.items[line, i] for i in range(len(PrefillItem._fields))))
    return item, lax.rem(index, shape.num_units)
