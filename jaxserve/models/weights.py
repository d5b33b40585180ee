"""Weights of a model: streamed from safetensors into place, or made at random on the device.

Everything is checked from the files' headers before a byte of weights is read. One parameter at
a time is assembled on the host (its fused parts stacked, cast to the model's dtype), so host
memory peaks at the largest single parameter.
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from jaxserve.core.checkpoint import weight_files
from jaxserve.core.config import ModelConfig
from jaxserve.core.errors import CheckpointError, ConfigError
from jaxserve.models.kv_scales import is_attention_scale
from jaxserve.models.llama import CheckpointLayout, Llama
from jaxserve.models.registry import model_class
from jaxserve.models.tensors import FLOAT_DTYPES, open_tensors

LOAD_FORMATS = ("auto", "safetensors", "dummy")
_QUIET_BYTES = 256 << 20  # smaller checkpoints load in a moment: no progress bar unless on a terminal


@dataclass(frozen=True)
class LoadedModel:
    """A model taken apart, so that a step passes flat arrays only.

    leaves: the parameters, arrays or only their shapes and dtypes (`abstract_params`); treedef, graphdef: how to
        put them together again.
    """

    graphdef: nnx.GraphDef[Llama]
    leaves: list[Any]
    treedef: Any

    def merge(self, leaves: Sequence[jax.Array]) -> Llama:
        """The model with these parameters; call it inside the traced step."""
        return nnx.merge(self.graphdef, jax.tree.unflatten(self.treedef, leaves))

    @property
    def num_bytes(self) -> int:
        """Bytes of all parameters."""
        return sum(leaf.nbytes for leaf in self.leaves)


def widened(loaded: LoadedModel) -> LoadedModel:
    """The same model with every matrix kept as float32, whatever its dtype; results do not change.

    For processors that multiply 16-bit floats only by widening them first: done once instead of
    every step, at the price of twice the weights' memory. Activations and keys keep their dtype.
    """
    return replace(loaded, leaves=[_wide(leaf) if leaf.ndim == 2 else leaf for leaf in loaded.leaves])


def _wide(leaf: Any) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape, jnp.float32)
    return leaf.astype(jnp.float32)


def load_params(config: ModelConfig, path: Path, load_format: str = "auto", seed: int = 0) -> LoadedModel:
    """The model of `config` with the weights of the checkpoint in `path`, on the default device.

    load_format: "auto" or "safetensors" read the files; "dummy" ignores `path` and draws from `seed`.
    Raises CheckpointError naming the tensor and file at fault, what was expected and what was found.
    """
    if load_format not in LOAD_FORMATS:
        raise ConfigError(f"load_format is {load_format!r}; it must be one of {', '.join(LOAD_FORMATS)}.")
    if load_format == "dummy":
        return random_params(config, seed)
    graphdef, abstract, treedef = _abstract(config)
    layout = model_class(config.architecture).checkpoint_layout(config)
    with ExitStack() as stack:
        sources = _open_sources(stack, weight_files(path), layout, abstract)
        total = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in abstract.values())
        disable = None if total < _QUIET_BYTES else False
        with tqdm(total=total, desc="Loading weights", unit="B", unit_scale=True, disable=disable) as bar:
            leaves: list[jax.Array] = []
            for parameter, leaf in abstract.items():
                leaves.append(jax.device_put(_assemble(layout[parameter], leaf, sources)))
                bar.update(leaves[-1].nbytes)
    return LoadedModel(graphdef, leaves, treedef)


def abstract_params(config: ModelConfig) -> LoadedModel:
    """The model of `config` without weights: leaves that are shapes and dtypes only, for compiling and planning."""
    graphdef, abstract, treedef = _abstract(config)
    return LoadedModel(graphdef, list(abstract.values()), treedef)


def random_params(config: ModelConfig, seed: int) -> LoadedModel:
    """Random weights made on the device: matrices of deviation 1/sqrt(fan in), norms one, biases zero."""
    graphdef, abstract, treedef = _abstract(config)
    key = jax.random.key(seed, impl="rbg")  # the device's own generator: compiles and draws fastest
    leaves: list[jax.Array] = []
    for i, (parameter, leaf) in enumerate(abstract.items()):
        if len(leaf.shape) == 1:
            leaves.append(jnp.full(leaf.shape, 0 if parameter.endswith("bias") else 1, leaf.dtype))
        else:
            leaves.append(_random_matrix(jax.random.fold_in(key, i), leaf.shape, leaf.dtype))
    return LoadedModel(graphdef, leaves, treedef)


@partial(jax.jit, static_argnums=(1, 2))
def _random_matrix(key: jax.Array, shape: tuple[int, int], dtype: jnp.dtype) -> jax.Array:
    bound = (3 / shape[1]) ** 0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def _abstract(config: ModelConfig) -> tuple[nnx.GraphDef[Llama], dict[str, jax.ShapeDtypeStruct], Any]:
    """The model without weights: graphdef, shape and dtype of each parameter in leaf order, treedef."""
    model = nnx.eval_shape(lambda: model_class(config.architecture)(config))
    graphdef, state = nnx.split(model)
    with_paths, treedef = jax.tree_util.tree_flatten_with_path(state)
    return graphdef, {_dotted(path): leaf for path, leaf in with_paths}, treedef


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey))


def _open_sources(
    stack: ExitStack, files: list[Path], layout: CheckpointLayout, abstract: dict[str, jax.ShapeDtypeStruct]
) -> dict[str, Any]:
    """Tensor name -> open file that holds it, once all names and shapes are as the model needs them."""
    expected = {
        tensor: (rows, *abstract[parameter].shape[1:]) for parameter, parts in layout.items() for tensor, rows in parts
    }
    sources: dict[str, Any] = {}
    origin: dict[str, Path] = {}
    surplus: list[str] = []
    for file in files:
        handle = open_tensors(stack, file)
        names: list[str] = handle.keys()
        for tensor in names:
            if tensor not in expected:
                surplus += [] if _is_redundant(tensor) else [f"{tensor} ({file.name})"]
                continue
            if tensor in origin:
                raise CheckpointError(f"Tensor {tensor} is in two files: {origin[tensor].name} and {file.name}.")
            _check_tensor(handle, file, tensor, expected[tensor])
            sources[tensor], origin[tensor] = handle, file
    missing = [f"{tensor} {list(shape)}" for tensor, shape in expected.items() if tensor not in sources]
    if missing:
        raise CheckpointError(f"{files[0].parent} lacks {_some(missing)}, which the architecture needs.")
    if surplus:
        raise CheckpointError(f"{files[0].parent} holds {_some(surplus)}, which the architecture has no place for.")
    return sources


def _check_tensor(handle: Any, file: Path, tensor: str, shape: tuple[int, ...]) -> None:
    view = handle.get_slice(tensor)
    if tuple(view.get_shape()) != shape:
        raise CheckpointError(f"{file.name}: tensor {tensor} has shape {view.get_shape()}; expected {list(shape)}.")
    if view.get_dtype() not in FLOAT_DTYPES:
        raise CheckpointError(
            f"{file.name}: tensor {tensor} has dtype {view.get_dtype()}; supported: {', '.join(FLOAT_DTYPES)}."
        )


def _is_redundant(tensor: str) -> bool:
    """Tensors that are no weights: what older tools wrote though it can be worked out (the tied head, rotary
    buffers), and scales of an 8-bit KV pool, which `load_kv_scales` reads where there is one."""
    return tensor == "lm_head.weight" or tensor.endswith("rotary_emb.inv_freq") or is_attention_scale(tensor)


def _assemble(parts: Sequence[tuple[str, int]], leaf: jax.ShapeDtypeStruct, sources: dict[str, Any]) -> np.ndarray:
    """One parameter on the host: its checkpoint tensors stacked by rows and cast."""
    if len(parts) == 1:
        tensor = parts[0][0]
        return sources[tensor].get_tensor(tensor).astype(leaf.dtype, copy=False)
    stacked = np.empty(leaf.shape, leaf.dtype)
    start = 0
    for tensor, rows in parts:
        stacked[start : start + rows] = sources[tensor].get_tensor(tensor)
        start += rows
    return stacked


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more tensors"
