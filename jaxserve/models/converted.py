"""Reading what `jaxserve convert` wrote: an Orbax checkpoint of a model's parameters, and a file that says what it is.

Parameters are stored as one device has them, fused and in order, each under its path in the model; stacked matrices as
the matrix of all their rows. Orbax keeps them in chunks, and TensorStore, which Orbax itself reads with, reads those
that a slice touches: the shards of any mesh, and no others.
"""

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore as ts

from jaxserve.core.checkpoint import CONVERTED_FILE, is_converted, read_json
from jaxserve.core.errors import CheckpointError

ARRAYS = "arrays"
"""The directory of the Orbax checkpoint, beside config.json."""
FORMAT = 1
_CACHE_BYTES = 256 << 20  # of chunks: parts of one parameter, read one after another, share them


class StoredArray:
    """One parameter on disk: slices of it are read when they are taken. Raises CheckpointError where that fails."""

    def __init__(self, path: Path, name: str, context: Any) -> None:
        self._what = f"{path}: array {name}"
        kvstore = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{path}/"}, "path": f"{name}/"}
        spec: dict[str, Any] = {"driver": "zarr", "kvstore": kvstore, "recheck_cached_data": False}
        try:
            self._store: Any = ts.open(spec, read=True, open=True, context=context).result()
        except (ValueError, OSError) as error:
            raise CheckpointError(f"{self._what} cannot be opened; convert the model again. {error}") from error

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._store.shape)

    def __getitem__(self, slices: Any) -> np.ndarray:
        try:
            return np.asarray(self._store[slices].read().result())
        except (ValueError, OSError) as error:
            raise CheckpointError(f"{self._what} cannot be read; convert the model again. {error}") from error


def open_arrays(path: Path, expected: dict[str, jax.ShapeDtypeStruct]) -> dict[str, StoredArray]:
    """The parameters of a converted checkpoint, all there and of the expected shapes; nothing of them is read yet.

    Raises CheckpointError for what is no such checkpoint, one of another version, files that are missing or cut off,
    and parameters that are not those of the model.
    """
    if not is_converted(path):
        raise CheckpointError(f"{path} has no {CONVERTED_FILE}: it was not written by `jaxserve convert`.")
    written = read_json(path, CONVERTED_FILE)
    if written.get("format") != FORMAT:
        raise CheckpointError(
            f"{path / CONVERTED_FILE}: format is {written.get('format')!r}; this version reads {FORMAT}. "
            "Convert the model again."
        )
    _check_files(path, written.get("files"))
    context: Any = ts.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})
    names, shapes = set(expected), written.get("arrays")
    if not isinstance(shapes, dict) or set(shapes) != names:
        found: set[str] = set(shapes) if isinstance(shapes, dict) else set()
        odd = sorted(names ^ found)
        raise CheckpointError(
            f"{path} holds {len(found)} arrays; the architecture has {len(names)}, and {', '.join(odd[:5])} are in one "
            "of the two only. Convert the model again."
        )
    stored = {name: StoredArray(path / ARRAYS, name, context) for name in expected}
    for name, leaf in expected.items():
        if stored[name].shape != stored_shape(leaf.shape):
            raise CheckpointError(
                f"{path}: array {name} has shape {list(stored[name].shape)}; expected {list(stored_shape(leaf.shape))}."
            )
    return stored


def stored_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of a parameter on disk: matrices that are stacked lie row after row."""
    return shape if len(shape) < 3 else (math.prod(shape[:-1]), shape[-1])


def file_sizes(path: Path) -> dict[str, int]:
    """Bytes of every file of the Orbax checkpoint, by name."""
    files = sorted(file for file in (path / ARRAYS).rglob("*") if file.is_file())
    return {file.relative_to(path).as_posix(): file.stat().st_size for file in files}


def _check_files(path: Path, stated: Any) -> None:
    """A chunk that is not there would be read as zeros."""
    found = file_sizes(path)
    if not isinstance(stated, dict) or not stated:
        raise CheckpointError(f"{path / CONVERTED_FILE}: files must be an object of names and sizes.")
    for name, size in stated.items():
        if found.get(name) != size:
            what = "is missing" if name not in found else f"has {found[name]} bytes"
            raise CheckpointError(f"{path}: {name} {what}; {size} bytes were written. Copy or convert the model again.")
