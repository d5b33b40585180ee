"""`ChatTemplate`: messages to the one prompt text a chat model was trained on.

Templates come from the checkpoint or the operator, never from a request, and run in transformers'
sandbox (no attributes of Python objects, no changes, no imports). Their errors are the request's.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

from jaxserve.core.errors import ConfigError, RequestError
from jaxserve.text.messages import read_messages
from jaxserve.text.tokenizer import Tokenizer, check_unicode

MAX_TEMPLATE_BYTES = 1 << 20
_render: Any = render_jinja_template  # its keyword arguments are partly names of the template's own
_SET_FLAG = "start the server with --chat-template FILE, or use the completions endpoint"
_RESERVED = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "conversations",
        "documents",
        "max_length",
        "messages",
        "padding",
        "raise_exception",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "sanitize_control_tokens",
        "self",
        "strftime_now",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)
# What a template, foreign code as it is, may raise on messages it was not written for.
_TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


class ChatTemplate:
    """Renders chats for one model; stateless, safe to share between threads.

    default: the template text, None where the model has none. tool_use: the one for requests with
    tools, None for the same. special_tokens: bos_token and the like, which templates read.
    """

    def __init__(self, default: str | None, special_tokens: Mapping[str, str], tool_use: str | None = None) -> None:
        self.default = default
        self._special_tokens = dict(special_tokens)
        self._tool_use = tool_use
        for template in (default, tool_use):
            if template is not None:
                _check_template(template, self._special_tokens)

    @classmethod
    def load(cls, tokenizer: Tokenizer, override: str | None = None) -> "ChatTemplate":
        """The checkpoint's template, or `override`: a file's path or the template itself.

        Raises ConfigError for a missing, oversized or malformed template.
        """
        own: Any = tokenizer.hf.chat_template
        if override is not None:
            return cls(_read_override(override), tokenizer.special_tokens)
        if isinstance(own, dict):
            return cls(own.get("default"), tokenizer.special_tokens, own.get("tool_use"))
        return cls(own, tokenizer.special_tokens)

    def render(
        self,
        messages: Sequence[Any],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        max_chars: int | None = None,
    ) -> str:
        """The prompt text, special tokens included: encode it with add_special_tokens=False.

        messages: each {"role", "content"}; content is text or a list of text parts.
        add_generation_prompt: end with the header of the assistant's answer.
        continue_final_message: leave the last message open, for the model to go on with.
        chat_template_kwargs: further names the template may read (enable_thinking and so on).
        max_chars: refuse messages with more characters in all, None for no limit.
        Special tokens typed inside a message become special tokens, as in transformers.
        Raises RequestError.
        """
        template = self.default if not tools or self._tool_use is None else self._tool_use
        if template is None:
            raise RequestError(f"this model has no chat template: {_SET_FLAG}", param="messages")
        if add_generation_prompt and continue_final_message:
            raise RequestError(
                "continue_final_message cannot be combined with add_generation_prompt: set one of them to false",
                param="continue_final_message",
            )
        names = self._special_tokens | _checked_kwargs(chat_template_kwargs or {})
        chat = read_messages(messages, max_chars, keeps_developer_role="developer" in template)
        if continue_final_message and not chat[-1].get("content"):
            raise RequestError("continue_final_message needs a last message with text", param="continue_final_message")
        try:
            texts, _ = _render(
                conversations=[chat],
                tools=list(tools) if tools else None,
                documents=list(documents) if documents else None,
                chat_template=template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **names,
            )
        except _TEMPLATE_ERRORS as error:
            raise RequestError(_refusal(error, continue_final_message), param="messages") from error
        check_unicode(texts[0], "messages")
        return texts[0]


def _refusal(error: BaseException, continues: bool) -> str:
    """Templates speak to users through TemplateError alone; other errors may quote what they were given."""
    if type(error) is jinja2.TemplateError or isinstance(error, jinja2.UndefinedError):
        reason = (str(error).splitlines() or [""])[0][:200]
        return f"the chat template does not accept these messages: {reason}"
    hint = " (does it render the last message as it stands, as continue_final_message needs?)" if continues else ""
    return f"the chat template failed on these messages with {type(error).__name__}{hint}"


def _checked_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    for name in kwargs:
        if not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise RequestError("chat_template_kwargs: names must be plain identifiers", param="chat_template_kwargs")
        if name in _RESERVED or name.endswith("_token"):
            raise RequestError(
                f"chat_template_kwargs: {name!r} is reserved; only names the template itself defines may be set",
                param="chat_template_kwargs",
            )
    return dict(kwargs)


def _read_override(override: str) -> str:
    if "{{" in override or "{%" in override:
        if len(override.encode("utf-8", "surrogatepass")) > MAX_TEMPLATE_BYTES:
            raise ConfigError(f"chat_template: the template is larger than {MAX_TEMPLATE_BYTES} bytes")
        return override
    path = Path(override).expanduser()
    try:
        with path.open("rb") as file:
            content = file.read(MAX_TEMPLATE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"chat_template: {override[:200]!r} is neither a readable file nor a template (which holds {{{{ or {{%)"
        ) from error
    if len(content) > MAX_TEMPLATE_BYTES:
        raise ConfigError(f"chat_template: {path} is larger than {MAX_TEMPLATE_BYTES} bytes, too large for a template")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"chat_template: {path} is not UTF-8 text") from error


def _check_template(template: str, special_tokens: Mapping[str, str]) -> None:
    """Compile it and try one plain chat. Raises ConfigError where it is malformed or leaves the sandbox."""
    probe = [{"role": "user", "content": "Hello"}]
    try:
        _render(conversations=[probe], chat_template=template, add_generation_prompt=True, **special_tokens)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"chat_template: syntax error in line {error.lineno}: {error.message}") from error
    except jinja2.exceptions.SecurityError as error:
        raise ConfigError(f"chat_template: the template reaches for what the sandbox forbids: {error}") from error
    except _TEMPLATE_ERRORS:
        return  # a template may refuse this chat, for want of a system message say, and accept others
