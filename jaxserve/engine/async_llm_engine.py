"""`AsyncLLMEngine` where programs written for vLLM import it from."""

from jaxserve.engine.async_engine import AsyncLLMEngine

__all__ = ["AsyncLLMEngine"]
