"""Every error a user can meet, with one rule: name the field, the value, the limit and the remedy."""

from collections.abc import Mapping


class JaxserveError(Exception):
    """Base of all errors raised on purpose by jaxserve."""


class ConfigError(JaxserveError):
    """The engine cannot start as asked: a flag, a checkpoint or the memory does not fit."""


class CheckpointError(ConfigError):
    """A checkpoint is missing, truncated, or its tensors are not those the architecture needs."""


class DoesNotFit(ConfigError):
    """Model, KV pool and a step's working memory need more than the device has.

    remedies: flag -> value, each of which alone would make it fit.
    """

    def __init__(self, message: str, remedies: Mapping[str, int | float | str] | None = None) -> None:
        super().__init__(message)
        self.remedies = dict(remedies or {})


class RequestError(JaxserveError):
    """One request is not valid (HTTP 400). Nobody else notices.

    param: the request field at fault, as the user wrote it.
    code: a machine-readable reason such as "context_length_exceeded", or None.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class QueueFull(JaxserveError):
    """The server is at its queue limit (HTTP 503). retry_after_s: when to try again, seconds."""

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineDead(JaxserveError):
    """The engine process ended; no request can be served until it is restarted (HTTP 503)."""


class ReplicaLost(JaxserveError):
    """The replica that ran this request ended, or none is up just now; it is restarted (HTTP 503, try again)."""


class EngineError(JaxserveError):
    """This one request failed inside the engine (HTTP 500); others go on."""
