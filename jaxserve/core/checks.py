"""Checks of single request fields. Each returns the value in its plain Python type or raises RequestError.

The messages name the field, the value, the limit and, where it is not obvious, the remedy. They
never quote more than a short number or a type's name: a request's text does not belong into a log.
"""

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

from jaxserve.core.errors import RequestError

MAX_INT32 = 2**31 - 1
MAX_INT64 = 2**63 - 1


def fail(field: str, problem: str, remedy: str = "") -> RequestError:
    """The error to raise: `problem` reads on from the field's name, `remedy` is a sentence of its own.

    field: a name, or an entry of it: "stop[2]", "logit_bias key".
    """
    name = field.partition("[")[0].partition(" ")[0]
    return RequestError(f"{field} {problem}.{' ' + remedy if remedy else ''}", param=name)


def show(value: object) -> str:
    """A value as a message may quote it: short numbers as they are, everything else by its type."""
    if value is None or isinstance(value, bool):
        return str(value)
    if isinstance(value, Integral):
        number = int(value)
        return str(number) if number.bit_length() <= 64 else f"an integer of {number.bit_length()} bits"
    if isinstance(value, Real):
        return repr(float(value))
    return f"a value of type {type(value).__name__}"


def check_float(field: str, value: Any, low: float, high: float, *, above_low: bool = False, remedy: str = "") -> float:
    """A finite number in [low, high], or (low, high] with above_low. Returned as float, -0.0 as 0.0."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise fail(field, f"must be a number, got {show(value)}", remedy)
    number, is_huge = _to_float(value)
    if not is_huge and not math.isfinite(number):
        raise fail(field, f"must be a finite number, got {show(value)}", remedy)
    if not low <= number <= high or (above_low and number == low):
        raise fail(field, f"must be {_float_limits(low, high, above_low)}, got {show(value)}", remedy)
    return number + 0.0


def _to_float(value: Any) -> tuple[float, bool]:
    """The value as a float, and whether it is an integer so long that float() could raise (then infinity)."""
    if isinstance(value, Integral) and abs(int(value)) > MAX_INT64:
        return (math.inf if int(value) > 0 else -math.inf), True
    return float(value), False


def _float_limits(low: float, high: float, above_low: bool) -> str:
    return f"{'greater than' if above_low else 'at least'} {low:g} and at most {high:g}"


def check_int(field: str, value: Any, low: int, high: int = MAX_INT32, *, remedy: str = "") -> int:
    """A whole number in [low, high]; True, False and 1.0 are not."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise fail(field, f"must be an integer, got {show(value)}", remedy)
    if not low <= int(value) <= high:
        raise fail(field, f"must be at least {low} and at most {high}, got {show(value)}", remedy)
    return int(value)


def check_bool(field: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise fail(field, f"must be true or false, got {show(value)}")
    return value


def check_list(field: str, value: Any, what: str, max_len: int | None = None) -> list[Any]:
    """A list (tuple, set or range) of at most max_len entries; `what` says of what, in the plural."""
    if not isinstance(value, list | tuple | set | frozenset | range):
        raise fail(field, f"must be a list of {what}, got {show(value)}")
    items: list[Any] = list(value)
    if max_len is not None and len(items) > max_len:
        raise fail(field, f"holds {len(items)} {what}; at most {max_len} are allowed")
    return items


def check_token_ids(field: str, value: Any) -> list[int]:
    """A list of ids that could be token ids: integers in [0, 2^31). The vocabulary is checked elsewhere."""
    ids = check_list(field, value, "token ids")
    if all(type(token_id) is int and 0 <= token_id <= MAX_INT32 for token_id in ids):
        return ids
    return [check_int(f"{field}[{i}]", token_id, 0) for i, token_id in enumerate(ids)]


def check_strings(field: str, value: Any, max_num: int | None, max_len: int) -> list[str]:
    """A list of strings of 1..max_len characters."""
    strings = check_list(field, value, "strings", max_num)
    for i, text in enumerate(strings):
        if not isinstance(text, str):
            raise fail(f"{field}[{i}]", f"must be a string, got {show(text)}")
        if not text:
            raise fail(f"{field}[{i}]", "must not be empty", "Leave it out of the list.")
        if len(text) > max_len:
            raise fail(f"{field}[{i}]", f"has {len(text)} characters; at most {max_len} are allowed")
    return strings


def check_in_vocab(field: str, token_ids: Iterable[int], vocab_size: int) -> None:
    """Every id names a token of a vocabulary of this size."""
    for token_id in token_ids:
        if token_id >= vocab_size:
            raise fail(
                field,
                f"holds token id {show(token_id)}, which is out of vocabulary",
                f"This model's ids are 0 to {vocab_size - 1}.",
            )
