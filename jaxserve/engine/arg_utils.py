"""`AsyncEngineArgs` and `EngineArgs` where programs written for vLLM import them from."""

from jaxserve.core.config import AsyncEngineArgs, EngineArgs

__all__ = ["AsyncEngineArgs", "EngineArgs"]
