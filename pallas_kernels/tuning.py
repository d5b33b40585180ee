"""Measured choices of kernel shapes, per device.

A device's choices are data, `tables/DEVICE.toml`, written by `jaxserve bench kernels --tune`; where there is no
table, or no line for a head size, what fits the shared memory of a Hopper stands in.
"""

import contextlib
import re
import tomllib
from collections.abc import Generator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import jax

COMPILED_FOR = "NVIDIA H200"  # where there is no GPU


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """Shape of the decode kernel's launch.

    num_sms: multiprocessors of the device; workers_per_sm: warpgroups that share one;
    num_stages: tiles of keys and values that each keeps in flight.
    """

    num_sms: int
    workers_per_sm: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class PrefillConfig:
    """Shape of the prefill kernel's launch.

    num_sms: multiprocessors of the device, one worker each; num_stages: tiles of keys and values in flight.
    """

    num_sms: int
    num_stages: int


# By head size: (workers_per_sm, num_stages) and num_stages.
_DECODE = {64: (2, 4), 128: (2, 2), 256: (1, 2)}
_PREFILL = {64: 4, 128: 2, 256: 2}
_tried: ContextVar[tuple[int, int] | None] = ContextVar("_tried", default=None)


def decode_config(*, head_dim: int) -> DecodeConfig:
    """head_dim: as the pool has it, one of the sizes that the kernel takes."""
    return DecodeConfig(_num_sms(), *(_tried.get() or _measured("decode", head_dim) or _DECODE[head_dim]))


def prefill_config(*, head_dim: int) -> PrefillConfig:
    """head_dim: as the pool has it, one of the sizes that the kernel takes."""
    return PrefillConfig(_num_sms(), (_measured("prefill", head_dim) or (_PREFILL[head_dim],))[0])


@contextlib.contextmanager
def trying(workers_per_sm: int, num_stages: int) -> Generator[None]:
    """What is traced meanwhile has a decode kernel of this shape."""
    token = _tried.set((workers_per_sm, num_stages))
    try:
        yield
    finally:
        _tried.reset(token)


def table_name(device_kind: str) -> str:
    """File name of a device's table."""
    return re.sub(r"\W+", "_", device_kind.lower()) + ".toml"


def _measured(kernel: str, head_dim: int) -> list[int] | None:
    device = jax.devices()[0]
    kind = device.device_kind if device.platform == "gpu" else COMPILED_FOR
    return _table(table_name(kind)).get(kernel, {}).get(f"head_{head_dim}")


@lru_cache(maxsize=8)
def _table(name: str) -> dict[str, dict[str, list[int]]]:
    file = resources.files("pallas_kernels") / "tables" / name
    return tomllib.loads(file.read_text()) if file.is_file() else {}


def most_workers() -> int:
    """Of any launch of the decode kernel on this device."""
    return 4 * _num_sms()


def _num_sms() -> int:
    """Of the first GPU; compiling without one takes a Hopper's."""
    return getattr(jax.devices()[0], "core_count", None) or 132


@dataclass(frozen=True, slots=True)
class TritonConfig:
    """Shapes of the jax-triton attention kernels.

    compute_capability: of the GPU compiled for, 89 for 8.9. num_sms: its multiprocessors; workers_per_sm:
    programs of the decode kernel that share one. *_tile: keys of one step; *_stages: tiles in flight.
    chunk_rows: queries times query heads of a KV head in one program.
    """

    compute_capability: int
    num_sms: int
    workers_per_sm: int
    decode_tile: int
    decode_warps: int
    decode_stages: int
    chunk_rows: int
    chunk_tile: int
    chunk_warps: int
    chunk_stages: int


_SMALL_SHARED_MEMORY = (86, 87, 89, 120, 121)  # compute capabilities of about 100 KB a multiprocessor


def triton_config(*, compute_capability: int, head_dim: int, itemsize: int, group: int, num_lines: int) -> TritonConfig:
    """Chosen so that tiles fit registers and shared memory; not yet tuned by measurement.

    itemsize: bytes of a query's number. group: query heads of a KV head, up to 32. num_lines: queries of the
    step times query heads: few of them are cut into smaller operands, to occupy more multiprocessors.
    """
    is_small = compute_capability in _SMALL_SHARED_MEMORY
    is_wide = head_dim > 128
    if itemsize == 4:  # multiplied without tensor cores, in registers
        tile, stages, chunk_rows, chunk_warps = 16 if is_wide else 32, 3, 16 if group <= 16 else 32, 8
    else:
        tile = 32 if is_wide or is_small else 64
        # The page id is fetched ahead of the keys: half the stages are its.
        stages = 3 if is_small and is_wide else 5
        lines_of_sm = num_lines // _num_sms()
        # Tensor cores before Hopper's and of small chips take all operands from registers: too few for 128 rows.
        is_hopper = compute_capability >= 90 and not is_small
        chunk_rows = 32 if lines_of_sm < 64 else 64 if lines_of_sm < 256 or not is_hopper else 128
        chunk_warps = 8 if chunk_rows == 128 or (is_wide and not is_hopper) else 4
    return TritonConfig(
        compute_capability=compute_capability,
        num_sms=_num_sms(),
        workers_per_sm=1 if is_wide else 2,
        decode_tile=tile,
        decode_warps=4,
        decode_stages=stages,
        chunk_rows=chunk_rows,
        chunk_tile=tile,
        chunk_warps=chunk_warps,
        chunk_stages=stages,
    )
