"""Reading fields of a checkpoint's config.json: typed, ranged, with errors that name field, value and limit."""

import math
from collections.abc import Mapping
from typing import Any

from jaxserve.core.errors import ConfigError


def read_int(fields: Mapping[str, Any], name: str, default: int | None, low: int, high: int) -> int:
    """An integer in [low, high]. An absent or null field takes the default; without one it is an error."""
    value = fields.get(name)
    if value is None:
        if default is None:
            raise ConfigError(f"config.json lacks {name}: an integer of {low} to {high} is needed.")
        return default
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"config.json: {name} is {_shown(value)}; it must be an integer.")
    if not low <= value <= high:
        raise ConfigError(f"config.json: {name} is {value}; it must be {low} to {high}.")
    return value


def read_float(
    fields: Mapping[str, Any], name: str, default: float | None, low: float = 0.0, high: float = math.inf
) -> float:
    """A finite number over `low` and at most `high`. Absent or null takes the default; without one it is an error."""
    value = fields.get(name)
    if value is None:
        if default is None:
            raise ConfigError(f"config.json lacks {name}: a number over {low:g} is needed.")
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"config.json: {name} is {_shown(value)}; it must be a finite number.")
    if not low < value <= high:
        upper = "" if math.isinf(high) else f" and at most {high:g}"
        raise ConfigError(f"config.json: {name} is {value:g}; it must be over {low:g}{upper}.")
    return float(value)


def read_bool(fields: Mapping[str, Any], name: str, default: bool) -> bool:
    """true or false; absent or null takes the default."""
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ConfigError(f"config.json: {name} is {_shown(value)}; it must be true or false.")
    return value


def read_floats(fields: Mapping[str, Any], name: str, length: int) -> tuple[float, ...]:
    """A list of `length` finite numbers over 0."""
    value = fields.get(name)
    if not isinstance(value, list | tuple) or len(value) != length:
        found = f"{len(value)} entries" if isinstance(value, list | tuple) else _shown(value)
        raise ConfigError(f"config.json: {name} is {found}; it must be a list of {length} numbers.")
    return tuple(read_float({name: item}, name, None) for item in value)


def read_token_ids(fields: Mapping[str, Any], name: str, vocab_size: int) -> tuple[int, ...]:
    """One token id or a list of them, as a tuple; absent or null is empty. Ids lie in [0, vocab_size)."""
    value = fields.get(name)
    if value is None:
        return ()
    items = value if isinstance(value, list | tuple) else [value]
    return tuple(read_int({name: item}, name, None, 0, vocab_size - 1) for item in items)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
