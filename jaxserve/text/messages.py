"""Chat messages as clients send them, checked and brought into the one form templates expect."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from jaxserve.core.errors import RequestError

MAX_MESSAGES = 16384
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_TEXT_FIELDS = ("name", "reasoning_content", "tool_call_id")


def read_messages(
    messages: Sequence[Any], max_chars: int | None = None, *, keeps_developer_role: bool = False
) -> list[dict[str, Any]]:
    """Messages with a known role and content as one string (text parts joined by newlines, as in vLLM).

    max_chars: characters of all messages together at most, None for no limit.
    keeps_developer_role: False turns OpenAI's role "developer" into "system", which every template knows.
    Raises RequestError (param "messages").
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):  # pyright: ignore[reportUnnecessaryIsInstance]
        _refuse("messages", "must be a list of messages")
    if not messages:
        _refuse("messages", "is empty: send at least one message")
    if len(messages) > MAX_MESSAGES:
        _refuse("messages", f"holds {len(messages)} messages, the limit is {MAX_MESSAGES}")
    chat: list[dict[str, Any]] = []
    num_chars = 0
    for index, message in enumerate(messages):
        chat.append(_read_message(f"messages[{index}]", message, keeps_developer_role))
        num_chars += len(chat[-1]["content"])
        if max_chars is not None and num_chars > max_chars:
            raise RequestError(
                f"the messages have more than {max_chars} characters, which cannot fit this model's context. "
                "Please reduce the length of the messages.",
                param="messages",
                code="context_length_exceeded",
            )
    return chat


def _read_message(where: str, message: Any, keeps_developer_role: bool) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        _refuse(where, 'must be an object with "role" and "content"')
    role = message.get("role")
    if role not in _ROLES:
        shown = repr(role[:40]) if isinstance(role, str) else "no text" if role is not None else "missing"
        _refuse(f"{where}.role", f"is {shown}, must be one of {', '.join(_ROLES)}")
    tool_calls = message.get("tool_calls")
    content = _read_content(f"{where}.content", message.get("content"), may_be_empty=role == "assistant")
    read: dict[str, Any] = {
        "role": "system" if role == "developer" and not keeps_developer_role else role,
        "content": content,
    }
    for field in _TEXT_FIELDS:
        value = message.get(field)
        if value is not None:
            if not isinstance(value, str):
                _refuse(f"{where}.{field}", "must be text")
            read[field] = value
    if tool_calls:
        read["tool_calls"] = _read_tool_calls(f"{where}.tool_calls", tool_calls)
    return read


def _read_content(where: str, content: Any, *, may_be_empty: bool) -> str:
    """may_be_empty: null stands for "" (an assistant's message that only called tools)."""
    if content is None and may_be_empty:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence) and not isinstance(content, bytes | bytearray):
        return "\n".join(_read_part(f"{where}[{index}]", part) for index, part in enumerate(content))
    return _refuse(where, f"must be text or a list of text parts, not {'null' if content is None else 'another type'}")


def _read_part(where: str, part: Any) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        return _refuse(where, "must be a text part")
    kind = part.get("type", "text")
    if kind not in ("text", "input_text", "output_text", "refusal"):
        shown = repr(kind[:40]) if isinstance(kind, str) else "of another type"
        return _refuse(where, f"is {shown}: this model reads text only, and no URL is ever fetched")
    text = part.get("refusal" if kind == "refusal" else "text")
    return text if isinstance(text, str) else _refuse(f"{where}.text", "must be text")


def _read_tool_calls(where: str, calls: Any) -> list[dict[str, Any]]:
    """Arguments become objects where they are JSON text, as templates expect them."""
    if not isinstance(calls, Sequence) or isinstance(calls, str | bytes):
        _refuse(where, "must be a list")
    read: list[dict[str, Any]] = []
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            _refuse(f"{where}[{index}]", 'must be an object with a "function" that has a "name"')
        arguments = function.get("arguments")
        read.append({**call, "function": {**function, "arguments": _parse_arguments(arguments)}})
    return read


def _parse_arguments(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return {} if arguments is None else arguments
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return parsed if isinstance(parsed, dict) else arguments


def _refuse(where: str, problem: str) -> NoReturn:
    raise RequestError(f"{where} {problem}", param="messages")
