"""`RopeConfig` from a checkpoint's config.json: the older `rope_scaling` and the newer `rope_parameters`."""

from collections.abc import Mapping
from typing import Any

from jaxserve.core.config import RopeConfig
from jaxserve.core.errors import ConfigError
from jaxserve.core.fields import read_bool, read_float, read_floats, read_int

ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
_MAX_CONTEXT = 1 << 30


def rope_config_from_hf(hf: Mapping[str, Any], head_dim: int, max_position_embeddings: int) -> RopeConfig:
    """The rotary embedding that transformers would build from this config.

    `factor` and `original_max_position_embeddings` are always resolved for the types that use
    them; dynamic stretches from max_position_embeddings, whatever the original length says.
    Raises ConfigError for an unsupported type or a nonsensical number.
    """
    fields = _rope_fields(hf)
    rope_type = fields.get("rope_type", fields.get("type", "default"))
    if rope_type not in ROPE_TYPES:
        raise ConfigError(f"config.json: rope type {rope_type!r} is not supported; supported: {', '.join(ROPE_TYPES)}.")
    theta = read_float(fields, "rope_theta", read_float(hf, "rope_theta", 10000.0, low=1.0), low=1.0)
    for source in (hf, fields):
        if read_float(source, "partial_rotary_factor", 1.0) != 1.0:
            value = source["partial_rotary_factor"]
            raise ConfigError(f"config.json: partial_rotary_factor is {value}; this model family needs 1.0.")
    if rope_type == "default":
        return RopeConfig(theta=theta)
    if rope_type == "linear":
        return RopeConfig("linear", theta, factor=read_float(fields, "factor", None))
    if rope_type == "dynamic":
        factor = read_float(fields, "factor", None)
        return RopeConfig("dynamic", theta, factor=factor, original_max_position_embeddings=max_position_embeddings)
    original = _original_length(hf, fields, max_position_embeddings)
    if rope_type == "llama3":
        return _llama3(fields, theta, original)
    factor = read_float(fields, "factor", max_position_embeddings / original)
    attention_factor = read_float(fields, "attention_factor", None) if _given(fields, "attention_factor") else None
    if rope_type == "yarn":
        return _yarn(fields, theta, factor, attention_factor, original)
    return RopeConfig(
        "longrope",
        theta,
        factor=factor,
        attention_factor=attention_factor,
        original_max_position_embeddings=original,
        short_factor=read_floats(fields, "short_factor", head_dim // 2),
        long_factor=read_floats(fields, "long_factor", head_dim // 2),
    )


def _rope_fields(hf: Mapping[str, Any]) -> Mapping[str, Any]:
    """The one dict of rotary parameters, wherever the checkpoint keeps it; empty if there is none."""
    for name in ("rope_scaling", "rope_parameters"):
        value = hf.get(name)
        if not value:
            continue
        if not isinstance(value, Mapping):
            raise ConfigError(f"config.json: {name} is {value!r}; it must be an object or null.")
        nested = [key for key, item in value.items() if isinstance(item, Mapping)]
        if nested:
            raise ConfigError(f"config.json: {name} differs by layer type ({', '.join(nested)}): not supported.")
        return value
    return {}


def _original_length(hf: Mapping[str, Any], fields: Mapping[str, Any], max_position_embeddings: int) -> int:
    name = "original_max_position_embeddings"
    source = hf if _given(hf, name) else fields
    return read_int(source, name, max_position_embeddings, 2, _MAX_CONTEXT)


def _llama3(fields: Mapping[str, Any], theta: float, original: int) -> RopeConfig:
    low = read_float(fields, "low_freq_factor", None)
    high = read_float(fields, "high_freq_factor", None)
    if high <= low:
        raise ConfigError(f"config.json: high_freq_factor is {high:g}; it must be over low_freq_factor, {low:g}.")
    return RopeConfig(
        "llama3",
        theta,
        factor=read_float(fields, "factor", None),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position_embeddings=original,
    )


def _yarn(
    fields: Mapping[str, Any], theta: float, factor: float, attention_factor: float | None, original: int
) -> RopeConfig:
    return RopeConfig(
        "yarn",
        theta,
        factor=factor,
        attention_factor=attention_factor,
        original_max_position_embeddings=original,
        beta_fast=read_float(fields, "beta_fast", 32.0),
        beta_slow=read_float(fields, "beta_slow", 1.0),
        mscale=read_float(fields, "mscale", 0.0, low=-1.0) or None,
        mscale_all_dim=read_float(fields, "mscale_all_dim", 0.0, low=-1.0) or None,
        truncate=read_bool(fields, "truncate", True),
    )


def _given(fields: Mapping[str, Any], name: str) -> bool:
    return fields.get(name) is not None
