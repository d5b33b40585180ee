"""A model argument becomes a local directory; its JSON files are read, its weight files listed.

Nothing here runs code from a checkpoint: `auto_map` is ignored, only *.safetensors are weights,
and only files inside the directory (or inside the hub cache it is a snapshot of) are opened.
"""

import json
import logging
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from transformers import AutoConfig

from jaxserve.core.config import ModelConfig
from jaxserve.core.errors import CheckpointError, ConfigError
from jaxserve.core.model_config import model_config_from_hf, supported_architecture

logger = logging.getLogger(__name__)

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONVERTED_FILE = "jaxserve_checkpoint.json"
"""What marks a directory that `jaxserve convert` wrote, and says what is in it."""
_MAX_JSON_BYTES = 64 << 20
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_TEXT_PATTERNS = ["*.json", "*.jinja", "*.model", "*.txt"]
_LICENSE_PATTERNS = ["LICENSE*", "NOTICE*"]


def resolve_model_path(model: str, revision: str | None = None, *, with_weights: bool = True) -> Path:
    """The local directory of a checkpoint: a directory as it is, a hub id downloaded into the hub cache.

    HF_HUB_OFFLINE=1 looks into the cache only. with_weights=False fetches config and tokenizer
    alone. Raises ConfigError that says what was looked for and what to do.
    """
    local = Path(model).expanduser()
    if local.is_dir():
        return local
    if local.exists():
        raise ConfigError(f"model {model!r} is a file; give the directory that holds config.json.")
    if not _HUB_ID.fullmatch(model):
        raise ConfigError(f"model {model!r}: no such directory, and not a hub id such as owner/name.")
    patterns = [*_TEXT_PATTERNS, *(["*.safetensors"] if with_weights else [])]
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except GatedRepoError as error:
        raise ConfigError(f"model {model!r} is gated on the hub: accept its terms there and set HF_TOKEN.") from error
    except RepositoryNotFoundError as error:
        raise ConfigError(f"model {model!r}: no such directory and no such model on the hub.") from error
    except RevisionNotFoundError as error:
        raise ConfigError(f"model {model!r} has no revision {revision!r} on the hub.") from error
    except (OSError, HFValidationError) as error:
        raise ConfigError(
            f"model {model!r}: no such directory, and it is neither in the hub cache nor can it be downloaded "
            f"({type(error).__name__}). Give a local directory, or check the network and HF_HUB_OFFLINE."
        ) from error


def load_model_config(
    path: Path, *, dtype: str = "auto", overrides: Mapping[str, Any] | None = None, expert_parallel: bool = False
) -> ModelConfig:
    """The checked ModelConfig of the checkpoint in `path`, or of a config.json given by itself under any name.

    overrides: config.json fields to replace. expert_parallel: see ModelConfig; ConfigError if there are no experts.
    """
    if path.is_file():
        model = model_config_from_hf(read_hf_config(path.parent, overrides, path.name), dtype=dtype)
    else:
        hf = read_hf_config(path, overrides)
        model = model_config_from_hf(hf, dtype=dtype, generation_config=read_generation_config(path))
    if expert_parallel and not model.num_experts:
        raise ConfigError(f"enable_expert_parallel=True: {model.architecture} in {path} has no experts; leave it out.")
    return replace(model, expert_parallel=expert_parallel)


def read_hf_config(path: Path, overrides: Mapping[str, Any] | None = None, name: str = "config.json") -> dict[str, Any]:
    """config.json with overrides laid over it and the family's defaults filled in by transformers.

    Where transformers refuses the file, it is returned as it stands: our own checks name the fault.
    """
    raw = {**read_json(path, name), **(overrides or {})}
    supported_architecture(raw)
    fields = {key: deepcopy(value) for key, value in raw.items() if key not in ("model_type", "auto_map")}
    try:
        filled = AutoConfig.for_model(str(raw.get("model_type")), **fields).to_dict()
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
        logger.debug("transformers does not take config.json (%s); reading it as it is", error)
        return raw
    # A default of the library must not replace what the file does say, null included.
    silent = {key: value for key, value in filled.items() if key not in raw}
    return {**silent, **raw}


def read_generation_config(path: Path) -> dict[str, Any]:
    """The content of generation_config.json; empty if there is none."""
    return read_json(path, "generation_config.json") if (path / "generation_config.json").exists() else {}


def weight_files(path: Path) -> list[Path]:
    """The safetensors files that make up the weights, in order of name.

    Raises CheckpointError for a shard that the index names and the directory lacks, for names
    that lead out of the directory, and where there are no safetensors at all.
    """
    if (path / SINGLE_FILE).exists():
        return [_inside(path, SINGLE_FILE)]
    if (path / INDEX_FILE).exists():
        return [_inside(path, name) for name in sorted(set(read_weight_map(path).values()))]
    names = sorted(file.name for file in path.glob("*.safetensors") if not file.name.startswith("consolidated"))
    if not names:
        raise CheckpointError(
            f"{path} holds no *.safetensors; other weight formats are not read. Convert the checkpoint to safetensors, "
            "or use load_format dummy for random weights."
        )
    return [_inside(path, name) for name in names]


def is_converted(path: Path) -> bool:
    """Whether `jaxserve convert` wrote this checkpoint: its weights are an Orbax checkpoint of our own layout."""
    return (path / CONVERTED_FILE).exists()


def text_files(path: Path) -> list[Path]:
    """The files of a checkpoint that are no weights: config, tokenizer, chat template, license."""
    names = {file.name for pattern in [*_TEXT_PATTERNS, *_LICENSE_PATTERNS] for file in path.glob(pattern)}
    return [_inside(path, name) for name in sorted(names - {INDEX_FILE, CONVERTED_FILE}) if (path / name).is_file()]


def read_weight_map(path: Path) -> dict[str, str]:
    """The index of a sharded checkpoint: tensor name -> file name."""
    weight_map = read_json(path, INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path / INDEX_FILE}: weight_map must be an object of tensor names to file names.")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not file.endswith(".safetensors"):
            raise CheckpointError(
                f"{path / INDEX_FILE}: {name} is said to be in {file!r}, which is no safetensors file."
            )
    return weight_map


def read_json(path: Path, name: str) -> dict[str, Any]:
    """A JSON object from a file of the checkpoint; CheckpointError if it is absent, too big or broken."""
    file = _inside(path, name)
    size = file.stat().st_size
    if size > _MAX_JSON_BYTES:
        raise CheckpointError(f"{file} is {size} bytes; at most {_MAX_JSON_BYTES} are read.")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} must hold a JSON object, not {type(value).__name__}.")
    return value


def _inside(path: Path, name: str) -> Path:
    """path / name, if it is a file that lies in the directory or in the hub cache behind it."""
    file = path / name
    if Path(name).name != name:
        raise CheckpointError(f"{path}: the file name {name!r} leads out of the checkpoint directory.")
    if not file.is_file():
        raise CheckpointError(f"{path} lacks {name}.")
    roots = [path.resolve()]
    if path.parent.name == "snapshots":  # hub cache: snapshots/<commit>/* are links into blobs/
        roots.append((path.parent.parent / "blobs").resolve())
    target = file.resolve()
    if not any(target.is_relative_to(root) for root in roots):
        raise CheckpointError(f"{file} is a link that leads out of the checkpoint directory, to {target}.")
    return file
