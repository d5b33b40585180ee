"""`POST /tokenize` and `POST /detokenize`: what the model's tokenizer makes of text, and back."""

from typing import Any

from fastapi import APIRouter, Request, Response

from server.answer import JsonAnswer
from server.chat import render_chat
from server.context import ServerContext
from server.errors import ApiError, documented
from server.protocol import DetokenizeBody, TokenizeBody
from server.reading import body_schema, read_body


def router(context: ServerContext) -> APIRouter:
    routes = APIRouter()
    responses = documented(400, 404, 413, 415, 503)

    @routes.post("/tokenize", responses=responses, openapi_extra=body_schema(TokenizeBody))
    async def tokenize(request: Request) -> Response:
        """Token ids of a prompt, or of a chat as the model would see it."""
        body = await read_body(context, request, TokenizeBody)
        return JsonAnswer(context, _tokenize(context, body))

    @routes.post("/detokenize", responses=responses, openapi_extra=body_schema(DetokenizeBody))
    async def detokenize(request: Request) -> Response:
        """The text of token ids."""
        body = await read_body(context, request, DetokenizeBody)
        return JsonAnswer(context, _detokenize(context, body))

    return routes


async def _tokenize(context: ServerContext, body: TokenizeBody) -> dict[str, Any]:
    context.check_model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "send either prompt or messages", param="prompt")
    is_chat = body.prompt is None
    text = await render_chat(context, body) if body.prompt is None else body.prompt
    adds_special = not is_chat if body.add_special_tokens is None else body.add_special_tokens
    tokenizer = context.engine.tokenizer
    ids = await context.in_text_thread(len(text), lambda: tokenizer.encode(text, adds_special))
    answer: dict[str, Any] = {"count": len(ids), "max_model_len": context.engine.info.max_model_len, "tokens": ids}
    if body.return_token_strs:
        answer["token_strs"] = [tokenizer.token_text(token_id) for token_id in ids]
    return answer


async def _detokenize(context: ServerContext, body: DetokenizeBody) -> dict[str, Any]:
    context.check_model(body.model)
    tokenizer = context.engine.tokenizer
    text = await context.in_text_thread(
        len(body.tokens), lambda: tokenizer.decode(body.tokens, skip_special_tokens=False)
    )
    return {"prompt": text}
