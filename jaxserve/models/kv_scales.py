"""Scales of an 8-bit KV pool, where a checkpoint carries them: measured when it was made, a number a layer or a head.

A key or value is what the pool stores times its scale. The names are those vLLM reads, whichever tool wrote them.
"""

import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from jaxserve.core.checkpoint import is_converted, weight_files
from jaxserve.core.config import ModelConfig
from jaxserve.core.errors import CheckpointError
from jaxserve.models.tensors import FLOAT_DTYPES, open_tensors

KV_SCALES_FILE = "kv_scales.safetensors"
"""Where a converted checkpoint keeps its scales, if it has any."""

type FloatArray = np.ndarray[tuple[int, ...], np.dtype[np.float32]]

_LAYER = r"model\.layers\.(\d+)\.self_attn\."
_SHARED = re.compile(_LAYER + r"(?:attn\.|qkv_proj\.)?(kv|k|v)_scale")
_OF_A_PROJECTION = re.compile(_LAYER + r"(k|v)_proj\.(?:\2_scale|output_scale)")
_OF_QUERIES = re.compile(_LAYER + r"(?:(?:attn\.)?(?:q|prob)_scale|q_proj\.(?:q|output)_scale)")


def is_attention_scale(tensor: str) -> bool:
    """Whether a tensor scales keys, values, queries or probabilities; the last two matter to 8-bit products only."""
    return _place(tensor) is not None or _OF_QUERIES.fullmatch(tensor) is not None


def load_kv_scales(config: ModelConfig, path: Path) -> FloatArray | None:
    """Scales `[L, 2, K]` of each layer's keys and values from the checkpoint in `path`; None if it has none.

    A layer or side without one gets 1. Raises CheckpointError naming the tensor that is of a wrong size, given
    twice, of a layer that is not there, or not a positive number.
    """
    scales_L2K = np.full((config.num_layers, 2, config.num_kv_heads), np.nan, np.float32)
    with ExitStack() as stack:
        for file in _scale_files(path):
            handle = open_tensors(stack, file)
            names: list[str] = handle.keys()
            for tensor in names:
                if (place := _place(tensor)) is not None:
                    _fill(scales_L2K, *place, tensor, handle, file)
    if np.isnan(scales_L2K).all():
        return None
    return np.where(np.isnan(scales_L2K), np.float32(1), scales_L2K)


def kv_scale_tensors(scales_L2K: FloatArray) -> dict[str, FloatArray]:
    """Scales under the names that `load_kv_scales` reads."""
    return {
        f"model.layers.{layer}.self_attn.attn.{side}_scale": np.ascontiguousarray(scales_2K[i])
        for layer, scales_2K in enumerate(scales_L2K)
        for i, side in enumerate("kv")
    }


def _scale_files(path: Path) -> list[Path]:
    if not is_converted(path):
        return weight_files(path)
    return [path / KV_SCALES_FILE] if (path / KV_SCALES_FILE).exists() else []


def _place(tensor: str) -> tuple[int, str] | None:
    """(layer, "k", "v" or "kv") of a scale's name; None for any other tensor."""
    found = _SHARED.fullmatch(tensor) or _OF_A_PROJECTION.fullmatch(tensor)
    return None if found is None else (int(found[1]), found[2])


def _fill(scales_L2K: FloatArray, layer: int, side: str, tensor: str, handle: Any, file: Path) -> None:
    """Write one tensor's scales to where they belong."""
    num_layers, _, num_heads = scales_L2K.shape
    if layer >= num_layers:
        raise CheckpointError(f"{file.name}: tensor {tensor} is of layer {layer}; the model has {num_layers} layers.")
    if (dtype := handle.get_slice(tensor).get_dtype()) not in FLOAT_DTYPES:
        raise CheckpointError(f"{file.name}: tensor {tensor} has dtype {dtype}; supported: {', '.join(FLOAT_DTYPES)}.")
    value = handle.get_tensor(tensor).astype(np.float32).reshape(-1)
    if value.size not in (1, num_heads):
        raise CheckpointError(
            f"{file.name}: tensor {tensor} holds {value.size} numbers; expected 1, or one of each of "
            f"{num_heads} KV heads."
        )
    if not (np.isfinite(value) & (value > 0)).all():
        raise CheckpointError(
            f"{file.name}: tensor {tensor} holds {value.min()}; a scale must be a finite number above 0. "
            "Leave kv_cache_dtype at auto to serve the checkpoint without it."
        )
    sides = {"k": slice(0, 1), "v": slice(1, 2), "kv": slice(0, 2)}[side]
    if not np.isnan(scales_L2K[layer, sides]).all():
        raise CheckpointError(f"{file.name}: tensor {tensor} scales what another tensor of layer {layer} scales too.")
    scales_L2K[layer, sides] = value
