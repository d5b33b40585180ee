"""API keys: every path needs one, but those that load balancers probe."""

import hashlib
import hmac
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import ApiError, send_error

OPEN_PATHS = frozenset({"/health", "/ready"})


class KeyCheck:
    """Compares hashes in constant time, so that neither the key's length nor a common prefix shows."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def accepts(self, authorizations: list[bytes]) -> bool:
        """authorizations: all values of that header; more than one is ambiguous and refused."""
        if len(authorizations) != 1:
            return False
        scheme, _, key = authorizations[0].partition(b" ")
        digest = _digest(key)
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return scheme.lower() == b"bearer" and any(matches)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


class AuthMiddleware:
    """401 before anything is read. Looks at scope["path"], which no request header can change."""

    def __init__(self, app: ASGIApp, keys: Iterable[str], root_path: str = "") -> None:
        self._app = app
        self._check = KeyCheck(keys)
        self._open_paths = OPEN_PATHS | {root_path.rstrip("/") + path for path in OPEN_PATHS}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope.get("path") in self._open_paths or self._is_authorized(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            error = ApiError(
                401,
                "a valid API key is needed: send it as 'Authorization: Bearer KEY'",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
            await send_error(send, error, close=True)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _is_authorized(self, scope: Scope) -> bool:
        return self._check.accepts([value for name, value in scope["headers"] if name == b"authorization"])
