"""What operators and their tools ask: health, readiness, version, models, metrics."""

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from jaxserve import __version__
from jaxserve.core.errors import JaxserveError
from jaxserve.engine.messages import EngineInfo, SchedulerStats
from server.context import ServerContext
from server.errors import ApiError, documented
from server.metrics import CONTENT_TYPE

_GET = ["GET"]
_HEAD = ["HEAD"]


def router(context: ServerContext) -> APIRouter:
    routes = APIRouter()

    def get(path: str, handler: Any, statuses: tuple[int, ...] = (), **documentation: Any) -> None:
        responses = {**documented(*statuses), **documentation.pop("answers", {})}
        routes.add_api_route(path, handler, methods=_GET, responses=responses, **documentation)
        routes.add_api_route(path, handler, methods=_HEAD, include_in_schema=False)

    async def health() -> Response:
        """200 while requests can be answered, 503 otherwise (draining is healthy: it answers what it took).

        Several replicas are counted in the body: "degraded" while some are not up; 503 while none is.
        """
        if context.is_dead:
            context.check_serving()
        await context.engine.check_health()
        replicas = context.engine.latest_stats.replicas
        if not replicas:
            return Response(status_code=200)
        num_up = sum(replica.is_up for replica in replicas)
        status = "ok" if num_up == len(replicas) else "degraded"
        return JSONResponse({"status": status, "num_replicas": len(replicas), "num_replicas_up": num_up})

    async def ready() -> Response:
        """200 while new requests are taken; 503 at start, while draining and after the engine's death.

        Steps that are still being compiled (compile_in_background) are counted: until none is, requests are padded up.
        """
        context.check_serving()
        await context.engine.check_health()
        pending = context.engine.info.num_pending_programs
        if pending:
            pending = (await context.engine.stats()).num_pending_programs
        return JSONResponse({"status": "ready", "num_pending_programs": pending})

    async def show_version() -> dict[str, str]:
        return {"version": __version__}

    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_card(context)]}

    async def model(model_id: str) -> dict[str, Any]:
        context.check_model(model_id)
        return _card(context)

    async def server_info() -> dict[str, Any]:
        """What this server runs, for people and for routers; sampling defaults are the checkpoint's own."""
        engine = context.engine
        return {
            "version": __version__,
            "served_model_name": context.model,
            "architecture": engine.info.architecture,
            "dtype": engine.info.dtype,
            "kv_cache_dtype": engine.info.kv_cache_dtype,
            "device": engine.info.device,
            "max_model_len": engine.info.max_model_len,
            "max_num_seqs": engine.info.max_num_seqs,
            "data_parallel_size": engine.args.data_parallel_size,
            "tensor_parallel_size": engine.args.tensor_parallel_size,
            "default_sampling": engine.default_sampling,
        }

    async def metrics() -> Response:
        """Metrics in the text format of Prometheus; without the engine's own gauges while it is away."""
        info, stats = await _engine_state(context)
        return Response(context.metrics.render(info, stats), headers={"content-type": CONTENT_TYPE})

    get(
        "/health",
        health,
        (503,),
        response_class=Response,
        answers={200: {"description": "Healthy; of several replicas a JSON object of their numbers"}},
    )
    get("/ready", ready, (503,), response_class=JSONResponse, answers={200: {"description": "Ready"}})
    get("/version", show_version)
    get("/v1/models", models, (503,))
    get("/v1/models/{model_id:path}", model, (400, 404, 503))
    get("/server_info", server_info, (503,))
    text = {200: {"description": "Metrics", "content": {"text/plain": {"schema": {"type": "string"}}}}}
    get("/metrics", metrics, response_class=Response, answers=text)
    return routes


def _card(context: ServerContext) -> dict[str, Any]:
    return {
        "id": context.model,
        "object": "model",
        "created": context.created,
        "owned_by": "jaxserve",
        "root": context.model,
        "parent": None,
        "max_model_len": context.engine.info.max_model_len,
        "permission": [],
    }


async def _engine_state(context: ServerContext) -> tuple[EngineInfo | None, SchedulerStats | None]:
    if context.is_dead:
        return None, None
    try:
        return context.engine.info, await context.engine.stats()
    except (ApiError, JaxserveError):
        return None, None
