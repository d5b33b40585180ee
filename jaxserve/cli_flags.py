"""Command-line flags made from dataclass fields: the flag, its environment name and its key in a --config file.

A flag beats the environment, the environment beats the file, the file beats the field's default.
argparse, because it is there at once: libraries that build upon pydantic spend the help page's whole time on imports.
"""

import argparse
import difflib
import json
import os
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, NoReturn, Union, get_args, get_origin

from jaxserve.core.errors import ConfigError

ENVIRONMENT_PREFIX = "JAXSERVE_"
EPILOG = (
    "Each flag is also an environment name (--max-num-seqs is JAXSERVE_MAX_NUM_SEQS) and a key of the --config file "
    "(max-num-seqs: 8). A flag wins over the environment, the environment over the file."
)
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


class UsageError(ConfigError):
    """The command line itself cannot be read."""


class Parser(argparse.ArgumentParser):
    """A parser that raises UsageError (one line, with the nearest name) instead of printing and leaving."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (try: {self.prog} --help)")

    def parse(self, argv: Sequence[str]) -> dict[str, Any]:
        """Names and values of what is given; options and positionals may come in any order."""
        namespace, unknown = self.parse_known_intermixed_args(argv)
        if unknown:
            flag = unknown[0].partition("=")[0]
            known = [name for action in self._actions for name in action.option_strings]
            self.error(f"unknown argument {unknown[0]!r}{_near(flag, known)}")
        return vars(namespace)


def add_flags(parser: Parser, *kinds: type) -> None:
    """A flag for each field of these dataclasses, in the fields' groups, and --config."""
    parser.add_argument(
        "--config", metavar="FILE", default=argparse.SUPPRESS, help="YAML file of flags, one key a flag"
    )
    groups: dict[str, Any] = {}
    for one in _flag_fields(kinds):
        title = str(one.metadata.get("group", "options"))
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        action: dict[str, Any] = {"dest": one.name, "default": argparse.SUPPRESS, "help": _help(one)}
        if _is(one, bool):
            action["action"] = argparse.BooleanOptionalAction
        else:
            action["metavar"] = _metavar(one)
            action["action"] = "append" if _is(one, list) else "store"
            if one.metadata.get("several"):  # several values after one flag, as well as the flag several times
                action |= {"action": "extend", "nargs": "+"}
        groups[title].add_argument(*_spellings(one), **action)


def gather(given: Mapping[str, Any], *kinds: type) -> dict[str, Any]:
    """Values of the dataclasses' fields, by field name, from flags, environment and --config; unset ones are absent.

    Raises ConfigError for a value of the wrong type, an unknown key, or a misspelt environment name.
    """
    flags = {name: one for one in _flag_fields(kinds) for name in _names(one)}
    environment = _from_environment(flags)
    path = given.get("config") or os.environ.get(ENVIRONMENT_PREFIX + "CONFIG")
    values = _from_file(Path(path), flags) if path else {}
    values |= environment
    for name, value in given.items():
        if name in flags:
            values[name] = _read(flags[name], value, f"--{name.replace('_', '-')}")
    return values


def build[T](kind: type[T], values: Mapping[str, Any]) -> T:
    """The dataclass from those of the values that are its fields."""
    names = {one.name for one in fields(kind)}  # pyright: ignore[reportArgumentType]
    return kind(**{name: value for name, value in values.items() if name in names})


def _flag_fields(kinds: Iterable[type]) -> list[Field[Any]]:
    return [one for kind in kinds for one in fields(kind)]


def _names(one: Field[Any]) -> tuple[str, ...]:
    return (one.name, *one.metadata.get("aliases", ()))


def _spellings(one: Field[Any]) -> list[str]:
    """As the flag is written: --field-name, its aliases, and -short."""
    short = one.metadata.get("short")
    return [f"--{name.replace('_', '-')}" for name in _names(one)] + ([f"-{short}"] if short else [])


def _members(one: Field[Any]) -> tuple[Any, ...]:
    """The types a value may have, None aside, list[str] as list."""
    kind: Any = one.type
    members = get_args(kind) if get_origin(kind) in (types.UnionType, Union) else (kind,)
    return tuple(get_origin(member) or member for member in members if member is not types.NoneType)


def _is(one: Field[Any], kind: type) -> bool:
    return kind in _members(one)


def _help(one: Field[Any]) -> str:
    default = None if one.default is MISSING else one.default
    if isinstance(default, bool):
        default = "on" if default else "off"
    shown = "" if default is None or default == "" else f" [{default}]"
    return (one.metadata.get("help", "") + shown).replace("%", "%%")


def _metavar(one: Field[Any]) -> str:
    if _is(one, dict):
        return "JSON"
    return {int: "N", float: "X"}.get(_members(one)[0], "TEXT") if len(_members(one)) == 1 else "N|TEXT"


def _from_environment(flags: Mapping[str, Field[Any]]) -> dict[str, Any]:
    names = {ENVIRONMENT_PREFIX + name.upper(): one for name, one in flags.items()}
    values: dict[str, Any] = {}
    for variable, text in os.environ.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or not text:
            continue
        if variable in names:
            one = names[variable]
            values[one.name] = _read(one, _split(text) if _is(one, list) else text, variable)
        elif near := _near(variable, names, 0.9):  # another command's names are fine, misspelt ones are not
            raise ConfigError(f"the environment sets {variable}, which nothing reads{near}")
    return values


def _split(text: str) -> list[str]:
    """A list in an environment variable: a JSON list, or items between commas or blanks."""
    if text.startswith("["):
        try:
            return [str(item) for item in json.loads(text)]
        except ValueError:
            pass  # an IPv6 address, say
    return [item for item in re.split(r"[,\s]+", text) if item]


def _from_file(path: Path, flags: Mapping[str, Field[Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in _yaml_object(path).items():
        name = str(key).replace("-", "_")
        if name not in flags:
            raise ConfigError(f"{path}: {str(key)!r} is no flag of this command{_near(name, flags)}")
        if value is not None:
            values[flags[name].name] = _read(flags[name], value, f"{path}: {key}")
    return values


def _yaml_object(path: Path) -> dict[Any, Any]:
    import yaml  # here: only with --config, and --help does without it

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config: {path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--config: {path} is not YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"--config: {path} must hold keys and values, one flag a line")
    return content


def _read(one: Field[Any], value: Any, where: str) -> Any:
    """A value as its field's type; `where` names its source in the error."""
    for kind in sorted(_members(one), key=lambda kind: kind is str):  # str takes everything, so it comes last
        try:
            return _as(kind, value)
        except ValueError:
            continue
    wanted = {bool: "true or false", int: "a whole number", float: "a number", dict: "a JSON object", list: "a list"}
    kinds = " or ".join(wanted.get(kind, "text") for kind in _members(one))
    raise ConfigError(f"{where}: {value!r} is not {kinds}")


def _as(kind: Any, value: Any) -> Any:
    """Raises ValueError where the value is not of this kind."""
    if kind is bool:
        if isinstance(value, bool):
            return value
        word = str(value).lower()
        if word not in _TRUE + _FALSE:
            raise ValueError(word)
        return word in _TRUE
    if kind is dict:
        content = json.loads(value) if isinstance(value, str) else value
        if not isinstance(content, dict):
            raise ValueError(value)
        return content
    if kind is list:
        return [str(item) for item in value] if isinstance(value, list) else [str(value)]
    if isinstance(value, bool | dict | list) or (kind is int and isinstance(value, float)):
        raise ValueError(value)
    return kind(value)


def _near(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """A hint that ends an error message; empty where nothing is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]}?" if near else ""
