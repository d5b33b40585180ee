"""Weights of a model: streamed from a checkpoint into place, or made at random on the device.

Everything is checked from the files' headers before a byte of weights is read. One parameter at
a time is assembled on the host (its fused parts stacked, cast to the model's dtype), so host
memory peaks at the largest single parameter.
"""

import math
from collections.abc import Callable, Sequence
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

from jaxserve.core.checkpoint import is_converted, weight_files
from jaxserve.core.config import ModelConfig
from jaxserve.core.errors import CheckpointError, ConfigError
from jaxserve.layers.shards import WHOLE, Shards
from jaxserve.models.kv_scales import is_attention_scale
from jaxserve.models.llama import Llama
from jaxserve.models.registry import model_class
from jaxserve.models.shard import shard_of
from jaxserve.models.tensors import FLOAT_DTYPES, open_tensors

LOAD_FORMATS = ("auto", "safetensors", "orbax", "dummy")
_QUIET_BYTES = 256 << 20  # smaller checkpoints load in a moment: no progress bar unless on a terminal


@dataclass(frozen=True)
class LoadedModel:
    """A model taken apart, so that a step passes flat arrays only.

    leaves: the parameters, arrays or only their shapes and dtypes (`abstract_params`), whole; treedef, graphdef: how
        to put them, or one device's shards of them, together again.
    axes: the logical axes of each.
    """

    graphdef: nnx.GraphDef[Llama]
    leaves: list[Any]
    treedef: Any
    axes: list[tuple[str, ...]]

    def merge(self, leaves: Sequence[jax.Array]) -> Llama:
        """The model with these parameters, a device's own; call it inside the traced step."""
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
    return replace(loaded, leaves=[_wide(leaf) if leaf.ndim > 1 else leaf for leaf in loaded.leaves])


def _wide(leaf: Any) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape, jnp.float32)
    return leaf.astype(jnp.float32)


Place = Callable[[tuple[str, ...], tuple[int, ...], Callable[[int], np.ndarray]], jax.Array]
"""(logical axes, shape of a shard, number of a shard -> the shard) -> the array, each shard on its device."""


def _on_default_device(axes: tuple[str, ...], shape: tuple[int, ...], make_shard: Callable[[int], np.ndarray]) -> Any:
    return jax.device_put(make_shard(0))


def load_params(
    config: ModelConfig,
    path: Path,
    load_format: str = "auto",
    seed: int = 0,
    shards: Shards = WHOLE,
    place: Place = _on_default_device,
) -> LoadedModel:
    """The model of `config` with the weights of the checkpoint in `path`, on the default device or where place puts it.

    load_format: "safetensors" or "orbax" (what `jaxserve convert` writes) read the files, of each only the parts that
    the shards here have, "auto" whichever of the two there is; "dummy" ignores `path` and draws from `seed`, the same
    numbers for any number of shards.
    Raises CheckpointError naming the tensor and file at fault, what was expected and what was found.
    """
    if load_format not in LOAD_FORMATS:
        raise ConfigError(f"load_format is {load_format!r}; it must be one of {', '.join(LOAD_FORMATS)}.")
    if load_format == "dummy":
        return random_params(config, seed, shards, place)
    graphdef, abstract, treedef, axes = _abstract(config, shards)
    cuts = _cuts(config, shards, axes)
    with ExitStack() as stack:
        if load_format == "orbax" or (load_format == "auto" and is_converted(path)):
            # Only here: TensorStore need not be loaded for what is no such checkpoint.
            from jaxserve.models.converted import open_arrays

            stored = open_arrays(path, _abstract(config)[1])
            makers = {name: partial(_cut_whole, cuts[name], leaf, stored[name]) for name, leaf in abstract.items()}
        else:
            sources = _open_sources(stack, weight_files(path), cuts, _abstract(config)[1])
            makers = {name: partial(_assemble, cuts[name], leaf, sources) for name, leaf in abstract.items()}
        total = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in abstract.values()) * shards.size
        disable = None if total < _QUIET_BYTES else False
        with tqdm(total=total, desc="Loading weights", unit="B", unit_scale=True, disable=disable) as bar:
            leaves: list[jax.Array] = []
            for parameter, leaf in abstract.items():
                leaves.append(place(axes[parameter], leaf.shape, makers[parameter]))
                bar.update(leaves[-1].nbytes)
    return LoadedModel(graphdef, leaves, treedef, list(axes.values()))


def abstract_params(config: ModelConfig, shards: Shards = WHOLE) -> LoadedModel:
    """The model of `config` without weights: leaves that are shapes and dtypes only, for compiling and planning."""
    graphdef, abstract, treedef, axes = _abstract(config, shards)
    leaves = [
        jax.ShapeDtypeStruct(_whole_shape(leaf.shape, axes[name], shards), leaf.dtype)
        for name, leaf in abstract.items()
    ]
    return LoadedModel(graphdef, leaves, treedef, list(axes.values()))


def parameter_names(config: ModelConfig) -> list[str]:
    """Paths of the parameters, in the order of `LoadedModel.leaves`."""
    return list(_abstract(config)[1])


def random_params(
    config: ModelConfig, seed: int, shards: Shards = WHOLE, place: Place = _on_default_device
) -> LoadedModel:
    """Random weights made on the device: matrices of deviation 1/sqrt(fan in), norms one, biases zero."""
    graphdef, abstract, treedef, axes = _abstract(config, shards)
    whole, cuts = _abstract(config)[1], _cuts(config, shards, axes)
    key = jax.random.key(seed, impl="rbg")  # the device's own generator: compiles and draws fastest
    leaves: list[jax.Array] = []
    for i, (parameter, leaf) in enumerate(abstract.items()):
        if len(leaf.shape) == 1:
            value = jnp.full(leaf.shape, 0 if parameter.endswith("bias") else 1, leaf.dtype)
            if shards.axis is not None:
                value = place(axes[parameter], leaf.shape, partial(_same_shard, np.asarray(value)))
            leaves.append(value)
            continue
        matrix = _random_matrix(jax.random.fold_in(key, i), whole[parameter].shape, leaf.dtype)
        if shards.axis is not None:
            # Off the device before the parts come: between them it would leave holes that no layer's pool fits into.
            rows = np.array(matrix).reshape(-1, matrix.shape[-1])
            matrix.delete()
            matrix = place(axes[parameter], leaf.shape, partial(_cut_whole, cuts[parameter], leaf, rows))
        leaves.append(matrix)
    return LoadedModel(graphdef, leaves, treedef, list(axes.values()))


def _same_shard(value: np.ndarray, number: int) -> np.ndarray:
    return value


@partial(jax.jit, static_argnums=(1, 2))
def _random_matrix(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    bound = (3 / shape[-1]) ** 0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


@dataclass(frozen=True, slots=True)
class Cut:
    """A checkpoint tensor's part in one parameter.

    rows: of the whole tensor; own_rows: of a shard's part of it, own_columns likewise (None: all, or a vector).
    num_shards: parts of the parameter. Parts that are fewer than shards go to several shards each; the last ones of
    a vocabulary may be short. only_shard: the one that has the tensor, None if all have a part of it.
    """

    tensor: str
    rows: int
    own_rows: int
    own_columns: int | None
    num_shards: int
    is_padded: bool
    only_shard: int | None = None

    def is_on(self, shard: int) -> bool:
        return self.only_shard in (None, shard)

    def rows_of(self, shard: int) -> slice:
        if self.own_rows >= self.rows:
            return slice(0, self.rows)
        if self.is_padded:
            start = min(shard * self.own_rows, self.rows)
            return slice(start, min(start + self.own_rows, self.rows))
        start = shard * (self.rows // self.own_rows) // self.num_shards * self.own_rows
        return slice(start, start + self.own_rows)

    def columns_of(self, shard: int) -> slice:
        if self.own_columns is None:
            return slice(None)
        return slice(shard * self.own_columns, (shard + 1) * self.own_columns)


def _cuts(config: ModelConfig, shards: Shards, axes: dict[str, tuple[str, ...]]) -> dict[str, list[Cut]]:
    """By parameter, the tensors that are stacked into it and what of each a shard has."""
    kind = model_class(config.architecture)
    share = shard_of(config, shards.size)
    whole, own = kind.checkpoint_layout(config), kind.checkpoint_layout(share)
    _, abstract, _, _ = _abstract(config, shards)
    cuts: dict[str, list[Cut]] = {}
    for parameter, parts in whole.items():
        is_cut = len(axes[parameter]) > 1 and axes[parameter][-1] in _CUT_AXES and shards.size > 1
        columns = abstract[parameter].shape[-1] if is_cut else None
        is_padded, own_parts = axes[parameter][0] == "vocab", own[parameter]
        num_own = len(own_parts)  # fewer than all where each shard has tensors of its own
        cuts[parameter] = [
            Cut(
                tensor,
                rows,
                own_rows=own_parts[i % num_own][1],
                own_columns=columns,
                num_shards=shards.size,
                is_padded=is_padded,
                only_shard=None if num_own == len(parts) else i // num_own,
            )
            for i, (tensor, rows) in enumerate(parts)
        ]
    return cuts


_CUT_AXES = ("vocab", "heads", "ff", "experts")


def _whole_shape(shape: tuple[int, ...], axes: tuple[str, ...], shards: Shards) -> tuple[int, ...]:
    return tuple(size * (shards.size if axis in _CUT_AXES else 1) for size, axis in zip(shape, axes, strict=True))


def _cut_whole(cuts: Sequence[Cut], leaf: jax.ShapeDtypeStruct, whole: Any, shard: int) -> np.ndarray:
    """A shard of a parameter that exists whole, the rows of its parts one after another (experts' too).

    whole: anything that slices give arrays of; only what the shard has is asked for.
    """
    if cuts[0].num_shards == 1:
        return np.asarray(whole[:]).astype(leaf.dtype, copy=False).reshape(leaf.shape)
    out = _rows_of(leaf)
    start = first = 0
    for cut in cuts:
        rows = cut.rows_of(shard)
        if cut.is_on(shard) and rows.start < rows.stop:
            picked = slice(first + rows.start, first + rows.stop)
            part = whole[picked] if out.ndim == 1 else whole[picked, cut.columns_of(shard)]
            out[start : start + rows.stop - rows.start] = np.asarray(part)
        start, first = start + cut.own_rows * cut.is_on(shard), first + cut.rows
    return out.reshape(leaf.shape)


def _rows_of(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    """Zeros for a vector or a matrix; for stacked matrices, the matrix of all their rows."""
    return np.zeros(leaf.shape if len(leaf.shape) == 1 else (math.prod(leaf.shape[:-1]), leaf.shape[-1]), leaf.dtype)


def _abstract(
    config: ModelConfig, shards: Shards = WHOLE
) -> tuple[nnx.GraphDef[Llama], dict[str, jax.ShapeDtypeStruct], Any, dict[str, tuple[str, ...]]]:
    """A device's share of the model without weights: graphdef, shape and dtype of each parameter in leaf order,
    treedef, logical axes of each parameter."""
    kind = model_class(config.architecture)
    model = nnx.eval_shape(lambda: kind(config, shards))
    graphdef, state = nnx.split(model)
    with_paths, treedef = jax.tree_util.tree_flatten_with_path(state)
    leaves = {_dotted(path): leaf for path, leaf in with_paths}
    return graphdef, leaves, treedef, {name: kind.logical_axes(name, config) for name in leaves}


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey))


def _open_sources(
    stack: ExitStack, files: list[Path], cuts: dict[str, list[Cut]], whole: dict[str, jax.ShapeDtypeStruct]
) -> dict[str, Any]:
    """Tensor name -> open file that holds it, once all names and shapes are as the model needs them."""
    expected = {
        cut.tensor: (cut.rows, *whole[parameter].shape[1:][-1:]) for parameter, parts in cuts.items() for cut in parts
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


def _assemble(cuts: Sequence[Cut], leaf: jax.ShapeDtypeStruct, sources: dict[str, Any], shard: int) -> np.ndarray:
    """A shard of one parameter on the host: its parts of the checkpoint's tensors stacked by rows and cast.

    Experts lie one after another: a parameter of three axes is filled as the matrix of all their rows. Only those
    parts are read.
    """
    if len(cuts) == 1 and cuts[0].num_shards == 1:
        tensor = cuts[0].tensor
        return sources[tensor].get_tensor(tensor).astype(leaf.dtype, copy=False)
    stacked = _rows_of(leaf)
    start = 0
    for cut in (cut for cut in cuts if cut.is_on(shard)):
        view, rows = sources[cut.tensor].get_slice(cut.tensor), cut.rows_of(shard)
        if rows.start < rows.stop:  # a slice of nothing is refused
            part = view[rows] if stacked.ndim == 1 else view[rows, cut.columns_of(shard)]
            stacked[start : start + rows.stop - rows.start] = part
        start += cut.own_rows
    return stacked.reshape(leaf.shape)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more tensors"
