"""The request bodies: their fields and types. Ranges are `SamplingParams`' business, meaning is the handlers'.

A null field is an absent one (clients send `"stop": null`). Fields that this server does not know are
ignored and named in the log once; fields that ask for what it cannot do are refused by name.
"""

import logging
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema
from pydantic_core import from_json

from server.errors import ApiError, field_path

_log = logging.getLogger(__name__)
_MAX_NAMES = 256
_logged_names: set[str] = set()

_TOKEN_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
        _TOKEN_IDS,
        {"type": "array", "items": _TOKEN_IDS, "minItems": 1},
    ]
}
# Lists of many thousand integers: looked at once, by the input processor, instead of once a union member.
PromptField = Annotated[Any, WithJsonSchema(_PROMPT_SCHEMA)]

# What other servers can do and this one cannot: the values that ask for nothing.
_NOT_BUILT: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "chat_template": (),
    "documents": (),
    "function_call": ("none",),
    "functions": (),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "kv_transfer_params": (),
    "length_penalty": (1.0,),
    "logits_processors": (),
    "logprob_token_ids": (),
    "modalities": (["text"],),
    "prediction": (),
    "prompt_embeds": (),
    "prompt_logprob_token_ids": (),
    "repetition_detection": (),
    "response_format": ({"type": "text"},),
    "return_prompt_text": (False,),
    "return_token_offsets": (False,),
    "return_tokens_as_token_ids": (False,),
    "structured_outputs": (),
    "suffix": ("",),
    "thinking_token_budget": (),
    "tool_choice": ("none", "auto"),
    "tools": (),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "web_search_options": (),
}
# Accepted without effect, as the OpenAI API documents them for callers that need no effect here.
_WITHOUT_EFFECT = frozenset(
    {
        "include_reasoning",
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "reasoning_effort",
        "safety_identifier",
        "service_tier",
        "session_id",
        "store",
        "user",
        "verbosity",
    }
)


class Body(BaseModel):
    """Base of every request body."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, hide_input_in_errors=True)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read JSON. Raises ApiError (400) with the field at fault."""
        try:
            value = from_json(data, allow_inf_nan=False)
        except ValueError as error:
            raise ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json") from None
        if not isinstance(value, dict):
            raise ApiError(400, "the body must be a JSON object", code="invalid_json")
        given = {name: item for name, item in value.items() if item is not None}
        _refuse_not_built(given)
        try:
            body = cls.model_validate(given)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            path = field_path(first["loc"])
            message = f"{path}: {first['msg']}" if path else str(first["msg"])
            raise ApiError(400, message, param=str(first["loc"][0]) if path else None) from None
        body.log_unknown()
        return body

    def log_unknown(self) -> None:
        for name in self.model_extra or ():
            known = name in _NOT_BUILT or name in _WITHOUT_EFFECT or name in _logged_names
            if not known and len(_logged_names) < _MAX_NAMES:
                _logged_names.add(name)
                _log.warning("ignoring the unknown request field %.64r (logged once)", name)


def _refuse_not_built(given: dict[str, Any]) -> None:
    for name, neutral in _NOT_BUILT.items():
        if name in given and given[name] not in neutral:
            allowed = f"; accepted values: {', '.join(map(repr, neutral))}" if neutral else ""
            message = f"{name} is not supported by this server{allowed}"
            raise ApiError(400, message, param=name, code="unsupported_parameter")


class StreamOptions(BaseModel):
    """include_usage: a last chunk with the token counts; continuous_usage_stats: counts in every chunk."""

    model_config = ConfigDict(strict=True, extra="ignore")

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationBody(Body):
    """The fields that completions and chat completions share."""

    # Copied as they are where given; the names are those of SamplingParams.
    SAMPLING: ClassVar[tuple[str, ...]] = (
        "n",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "seed",
        "stop",
        "stop_token_ids",
        "ignore_eos",
        "include_stop_str_in_output",
        "bad_words",
        "min_tokens",
        "prompt_logprobs",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "allowed_token_ids",
    )

    model: str | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    bad_words: list[str] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    min_tokens: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    allowed_token_ids: list[int] | None = None
    logit_bias: dict[str, float] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    echo: bool | None = None
    add_special_tokens: bool | None = None
    priority: int | None = Field(default=None, ge=-(2**31), lt=2**31)
    request_id: str | None = Field(default=None, min_length=1, max_length=128, pattern=r"^[A-Za-z0-9._:-]+$")
    cache_salt: str | None = Field(default=None, min_length=1, max_length=1024)
    return_token_ids: bool | None = None

    @property
    def includes_usage(self) -> bool:
        options = self.stream_options
        return options is not None and bool(options.include_usage or options.continuous_usage_stats)

    @property
    def continuous_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.continuous_usage_stats)


class CompletionBody(GenerationBody):
    """`POST /v1/completions`. logprobs: how many alternatives a token gets."""

    prompt: PromptField
    logprobs: int | None = None
    best_of: int | None = None


class ChatBody(GenerationBody):
    """`POST /v1/chat/completions`. Messages are checked by the chat renderer."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class TokenizeBody(Body):
    """`POST /tokenize`: a prompt, or the messages of a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = Field(default=None, min_length=1)
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeBody(Body):
    """`POST /detokenize`."""

    model: str | None = None
    tokens: list[int]
