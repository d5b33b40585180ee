"""`ServerArgs`: what a user may say about the HTTP server; the command line is generated from the fields."""

# ruff: noqa: RUF009 (`arg` makes a dataclass field)

from dataclasses import dataclass

from jaxserve.core.config import arg


@dataclass
class ServerArgs:
    """Names and defaults as vLLM's where it has them. Sizes in bytes, times in seconds."""

    host: str = arg("127.0.0.1", "Address to listen on; 0.0.0.0 for every interface.", "server")
    port: int = arg(8000, "Port to listen on; 0 takes a free one.", "server")
    uds: str | None = arg(None, "Listen on this Unix socket instead of host and port.", "server")
    api_key: list[str] | None = arg(None, "Keys clients must send as a bearer token; several are allowed.", "server")
    root_path: str = arg("", "Path prefix that a reverse proxy strips.", "server")
    allowed_origins: list[str] | None = arg(None, "Origins browsers may call from (CORS); none if unset.", "server")
    allowed_hosts: list[str] | None = arg(
        None, "Host names accepted besides localhost while listening on loopback; '*' for any.", "server"
    )
    shutdown_timeout: float = arg(30.0, "Seconds that running requests get to finish after SIGTERM.", "server")
    exit_on_engine_death: bool = arg(True, "End the server with an error when its engine died.", "server")
    enable_request_id_headers: bool = arg(False, "Answer with the X-Request-Id of the request, or a new one.", "server")
    uvicorn_log_level: str = arg("info", "critical, error, warning, info, debug or trace.", "server")
    disable_access_log: bool = arg(False, "Do not log a line for each HTTP request.", "server")
    max_body_bytes: int = arg(32 * 2**20, "Longest request body; longer ones get 413.", "server limits")
    max_header_bytes: int = arg(64 * 2**10, "Most bytes of request line and headers; more get 431.", "server limits")
    max_headers: int = arg(128, "Most headers of a request; more get 431.", "server limits")
    header_timeout: float = arg(20.0, "Seconds a client may take to send its headers.", "server limits")
    body_timeout: float = arg(60.0, "Seconds a client may take to send its body; then 408.", "server limits")
    max_json_depth: int = arg(64, "Deepest nesting of a JSON body.", "server limits")
    max_prompts: int = arg(1024, "Most prompts of one completion request.", "server limits")
    max_n: int = arg(128, "Most samples (n) of one request.", "server limits")
    max_stop_strings: int = arg(4, "Most stop strings of one request.", "server limits")
    template_timeout: float = arg(30.0, "Seconds that rendering a chat template may take.", "server limits")
