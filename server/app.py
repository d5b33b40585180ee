"""The application: routes inside, guards around them; and the process that serves it."""

import sys
from typing import Any

import uvicorn
from fastapi import APIRouter, FastAPI, Request, Response
from starlette.middleware.cors import CORSMiddleware

from jaxserve import __version__
from jaxserve.core.config import EngineArgs
from jaxserve.engine.async_engine import AsyncEngine
from server import ops, tokens
from server.answer import EventStream, JsonAnswer
from server.args import ServerArgs
from server.auth import AuthMiddleware
from server.chat import ChatCompletions
from server.completions import Completions
from server.connection import guarded_protocol
from server.context import DEMO_NAME, ServerContext, served_names
from server.errors import documented, install_handlers
from server.gate import GateMiddleware, MeasureMiddleware
from server.lifecycle import EXIT_CANNOT_START, Say, Server
from server.limits import LimitsMiddleware, is_loopback
from server.protocol import ChatBody, CompletionBody
from server.reading import body_schema, read_body

_CLOSE_TIMEOUT_S = 5  # for connections, after the last request has ended


def create_app(engine: AsyncEngine, args: ServerArgs | None = None) -> FastAPI:
    """An ASGI application over a running engine, for servers of your own; the engine stays yours to shut down.

    Raises ConfigError where the chat template cannot be used.
    """
    args = args or ServerArgs()
    return build_app(ServerContext(args, served_names(engine.args, DEMO_NAME), engine))


def build_app(context: ServerContext) -> FastAPI:
    """The application of a context whose engine may come later."""
    args = context.args
    app = FastAPI(
        title="jaxserve",
        version=__version__,
        root_path=args.root_path,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    install_handlers(app)
    app.include_router(_generation_router(context))
    app.include_router(tokens.router(context))
    app.include_router(ops.router(context))
    # The last one added is the outermost.
    hosts = (args.allowed_hosts or []) if args.uds is None and is_loopback(args.host) else None
    app.add_middleware(LimitsMiddleware, args=args, allowed_hosts=hosts)
    app.add_middleware(GateMiddleware, context=context)
    if args.api_key:
        app.add_middleware(AuthMiddleware, keys=args.api_key, root_path=args.root_path)
    if args.allowed_origins:
        app.add_middleware(CORSMiddleware, allow_origins=args.allowed_origins, allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(MeasureMiddleware, context=context)
    return app


def _generation_router(context: ServerContext) -> APIRouter:
    routes = APIRouter()
    responses: dict[int | str, dict[str, Any]] = documented(400, 404, 413, 415, 503)
    schema = {"schema": {"type": "object"}}
    responses[200] = {
        "description": "The answer, or its chunks where stream is true",
        "content": {"application/json": schema, "text/event-stream": {"schema": {"type": "string"}}},
    }

    @routes.post("/v1/completions", responses=responses, openapi_extra=body_schema(CompletionBody))
    async def completions(request: Request) -> Response:
        """Continue prompts, given as text or as token ids."""
        body = await read_body(context, request, CompletionBody)
        work = Completions(context, body)
        await work.prepare()
        return EventStream(context, work.stream()) if body.stream else JsonAnswer(context, work.answer())

    @routes.post("/v1/chat/completions", responses=responses, openapi_extra=body_schema(ChatBody))
    async def chat_completions(request: Request) -> Response:
        """Answer a chat through the model's template."""
        body = await read_body(context, request, ChatBody)
        work = ChatCompletions(context, body)
        await work.prepare()
        return EventStream(context, work.stream()) if body.stream else JsonAnswer(context, work.answer())

    return routes


def serve(engine_args: EngineArgs, args: ServerArgs | None = None, say: Say | None = None) -> int:
    """Run the server until it is told to end. Call it in the main thread: it handles SIGTERM and SIGINT.

    say: gets one line for each thing worth telling a waiting person (standard error if unset).
    Returns the process's exit code: 0 after a signal, 1 where the engine died, 2 where it could not start.
    """
    args = args or ServerArgs()
    context = ServerContext(args, served_names(engine_args, DEMO_NAME))
    config = uvicorn.Config(
        build_app(context),
        host=args.host,
        port=args.port,
        uds=args.uds,
        http=guarded_protocol(args),
        ws="none",
        lifespan="off",
        log_level=args.uvicorn_log_level,
        access_log=not args.disable_access_log,
        server_header=False,
        timeout_keep_alive=_keep_alive_s(args),
        timeout_graceful_shutdown=_CLOSE_TIMEOUT_S,
    )
    server = Server(config, context, engine_args, say or _to_stderr)
    try:
        server.run()
    except SystemExit:  # uvicorn could not listen, and has said why
        return EXIT_CANNOT_START
    finally:
        server.close()
    return server.exit_code


def _keep_alive_s(args: ServerArgs) -> int:
    """Idle connections live longer than clients' pools wait between two requests, and never for ever."""
    return max(5, int(args.header_timeout))


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201
