"""`jaxserve convert`: a model as an Orbax checkpoint of our own layout, beside its config and tokenizer."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from safetensors.numpy import save_file

from jaxserve.core.checkpoint import (
    CONVERTED_FILE,
    load_model_config,
    read_json,
    resolve_model_path,
    text_files,
)
from jaxserve.core.config import ModelConfig
from jaxserve.core.errors import ConfigError
from jaxserve.models.converted import ARRAYS, FORMAT, file_sizes, stored_shape
from jaxserve.models.kv_scales import KV_SCALES_FILE, kv_scale_tensors, load_kv_scales
from jaxserve.models.weights import load_params, parameter_names
from jaxserve.runner.memory import format_bytes, weight_bytes

_CHUNK_BYTES = 16 << 20  # a shard reads whole chunks
_SPARE_BYTES = 64 << 20  # for tokenizer, metadata and what Orbax adds


@dataclass(frozen=True)
class Converted:
    """What was written."""

    path: Path
    dtype: str
    num_parameters: int
    num_bytes: int


def convert(
    model: str, output: Path, dtype: str = "auto", revision: str | None = None, progress: Callable[[str], None] = print
) -> Converted:
    """Write the model to the directory `output`, which appears whole or not at all.

    dtype: of the weights from then on; "auto" keeps the checkpoint's. Host memory peaks at the whole model in that
    dtype, and what Orbax compresses at a time. No accelerator is used.
    Raises ConfigError where output exists or cannot be written, and whatever loading the model raises.
    """
    parent = _check_output(output)
    path = resolve_model_path(model, revision)
    config = load_model_config(path, dtype=dtype)
    _check_space(parent, config)
    progress(f"reading {path} as {config.dtype}")
    leaves = load_params(config, path, place=_on_the_host).leaves
    arrays = {
        name: leaf.reshape(stored_shape(leaf.shape)) for name, leaf in zip(parameter_names(config), leaves, strict=True)
    }
    partial = parent / f".{output.name}.{os.getpid()}.partial"
    try:
        partial.mkdir()
        _write(partial, path, config, arrays, progress)
        partial.rename(output)
    except OSError as error:
        raise ConfigError(f"{output} could not be written: {error}") from error
    finally:
        with suppress(FileNotFoundError):
            shutil.rmtree(partial)
    num_bytes = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    return Converted(output, config.dtype, len(arrays), num_bytes)


def _on_the_host(axes: tuple[str, ...], shape: tuple[int, ...], make_shard: Callable[[int], np.ndarray]) -> Any:
    return make_shard(0)


def _check_output(output: Path) -> Path:
    """The directory that `output` is to appear in."""
    if output.exists() or output.is_symlink():
        raise ConfigError(f"{output} exists, and is not overwritten; name another directory or remove it.")
    parent = output.absolute().parent
    if not parent.is_dir():
        raise ConfigError(f"{parent} is not a directory; make it first.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError(f"{parent} is not writable by this user; name another directory or change its permissions.")
    return parent


def _check_space(parent: Path, config: ModelConfig) -> None:
    needed = weight_bytes(config) + _SPARE_BYTES
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise ConfigError(
            f"{parent} has {format_bytes(free)} free; the model in {config.dtype} may need {format_bytes(needed)}. "
            "Make room or name a directory elsewhere."
        )


def _write(
    directory: Path, source: Path, config: ModelConfig, arrays: dict[str, np.ndarray], progress: Callable[[str], None]
) -> None:
    """Everything of the checkpoint; last the file that marks it."""
    progress(f"writing {len(arrays)} arrays, {format_bytes(sum(array.nbytes for array in arrays.values()))}")
    _save_arrays(directory / ARRAYS, arrays)
    for file in text_files(source):
        shutil.copyfile(file, directory / file.name)
    hf = {key: value for key, value in read_json(source, "config.json").items() if key != "torch_dtype"}
    _write_json(directory / "config.json", hf | {"dtype": config.dtype})
    scales_L2K = load_kv_scales(config, source)
    if scales_L2K is not None:
        save_file(kv_scale_tensors(scales_L2K), directory / KV_SCALES_FILE)
    shapes = {name: list(array.shape) for name, array in arrays.items()}
    marker = {"format": FORMAT, "dtype": config.dtype, "arrays": shapes, "files": file_sizes(directory)}
    _write_json(directory / CONVERTED_FILE, marker)


def _save_arrays(directory: Path, arrays: dict[str, np.ndarray]) -> None:
    save_args = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), arrays)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False)) as checkpointer:
        checkpointer.save(directory.absolute(), args=ocp.args.PyTreeSave(arrays, save_args=save_args))


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
