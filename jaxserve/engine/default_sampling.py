"""Sampling defaults that a checkpoint brings in its generation_config.json."""

import json
from pathlib import Path
from typing import Any, cast

from jaxserve.core.errors import ConfigError, RequestError
from jaxserve.core.params import SamplingParams

_FILE = "generation_config.json"
_ADOPTED = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}


def default_sampling(model_path: str, generation_config: str = "auto") -> dict[str, Any]:
    """Names and values of SamplingParams fields that requests take where they say nothing.

    generation_config: "auto" reads the checkpoint's file, "vllm" takes none of it, anything else is
    the directory to read it from. Raises ConfigError where a file cannot be used.
    """
    if generation_config == "vllm":
        return {}
    named = generation_config != "auto"
    path = Path(generation_config if named else model_path) / _FILE
    if not path.is_file():
        if named:
            raise ConfigError(f"generation_config: no {path}; use 'auto', 'vllm' or a directory that holds {_FILE}")
        return {}
    try:
        content: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; --generation-config vllm goes without it") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold a JSON object; --generation-config vllm goes without it")
    found = cast(dict[str, Any], content)
    adopted = {ours: found[theirs] for theirs, ours in _ADOPTED.items() if found.get(theirs) is not None}
    try:
        SamplingParams(**adopted)
    except RequestError as error:
        raise ConfigError(f"{path}: {error} --generation-config vllm goes without it") from error
    return adopted
