# pyright: basic, reportPrivateImportUsage=false, reportAbstractUsage=false
"""Tiles of an 8-bit pool: how they lie in shared memory, and how they become the 16 bits that wgmma multiplies.

A copy brings the 8 bits, half of what it would carry otherwise, into a landing place. Threads then load them,
widen them in registers and store them where a wgmma reads. A pair of either dtype becomes float16 in one
instruction, bfloat16 in four, by way of float32. Both hold every number of 8 bits exactly.
"""

from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.mosaic.gpu.fragmented_array import Tiling
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

NARROW_DTYPES = (jnp.float8_e4m3fn, jnp.float8_e5m2)
_AT_ONCE = 8  # of a thread's numbers of a row: 8 bytes loaded, 16 stored


def is_narrow(pool_dtype: Any) -> bool:
    """Whether a pool's numbers must be widened before they are multiplied."""
    return pool_dtype in NARROW_DTYPES


def landing(num_places: int, num_rows: int, head_dim: int, dtype: Any) -> Any:
    """Shared memory for tiles [rows, H] of 8 bits, as copies leave them and `widen` reads them."""
    width = min(head_dim, 128)
    transforms = (plgpu.TilingTransform((8, width)), plgpu.SwizzleTransform(width))
    return plgpu.SMEM((num_places, num_rows, head_dim), dtype, transforms=transforms)


def widen(narrow: Any, wide: Any, *, rows_at_once: int, interpret: bool = False) -> None:
    """Copies a tile of 8 bits into one of 16. To be committed by the caller before a wgmma reads it.

    narrow, wide: shared memory [rows, H]. rows_at_once: that pass through registers together; 4096 numbers take 16
    of each thread.
    """
    if interpret:
        wide[...] = narrow[...].astype(wide.dtype)
        return
    num_rows, head_dim = narrow.shape
    width = min(head_dim, 128)
    layout = _by_row(width)
    for row in range(0, num_rows, rows_at_once):
        for column in range(0, head_dim, width):
            place = (pl.ds(row, rows_at_once), pl.ds(column, width))
            wide[place] = _widened(plgpu.load(narrow.at[place], layout=layout), wide.dtype)


def _widened(values: Array, dtype: Any) -> Array:
    values = values.astype(jnp.float16)  # the only step that the hardware takes from 8 bits
    return values if dtype == jnp.float16 else values.astype(jnp.float32).astype(dtype)


def _by_row(width: int) -> Any:
    """Neighbouring threads hold neighbouring numbers of a row, so no two of those that are served together want
    the same bank: not when 16 load a line of 128 bytes, and not when 8 store one."""
    rows_of_warp = 32 * _AT_ONCE // width
    tiling = Tiling(((4 * rows_of_warp, width), (rows_of_warp, width), (_AT_ONCE,)))
    return plgpu.Layout.TILED(tiling, warp_dims=(-5,), lane_dims=(-3, -2), vector_dim=-1)
