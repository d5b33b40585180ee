"""The body of a request, read and parsed under its limits."""

from fastapi import Request

from server.context import ServerContext
from server.errors import ApiError
from server.limits import json_depth_exceeds
from server.protocol import Body

_BIG_BODY_BYTES = 256 * 1024  # parsed beside the event loop


async def read_body[B: Body](context: ServerContext, request: Request, kind: type[B]) -> B:
    """Raises ApiError: 415 for another content type, 400 for what is not such a body."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json" and not content_type.endswith("+json"):
        raise ApiError(
            415, "send the body as JSON with 'Content-Type: application/json'", code="unsupported_media_type"
        )
    data = await request.body()

    def parse() -> B:
        limit = context.args.max_json_depth
        if json_depth_exceeds(data, limit):
            raise ApiError(400, f"the body nests deeper than the limit of {limit} levels", code="invalid_json")
        return kind.parse(data)

    return await context.in_text_thread(len(data), parse, _BIG_BODY_BYTES)


def body_schema(kind: type[Body]) -> dict[str, object]:
    """`openapi_extra=` of a route that reads such a body."""
    schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
