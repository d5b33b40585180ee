"""An LLM serving engine in JAX.

The names below are loaded when they are first used: `import jaxserve` itself loads neither JAX nor transformers.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxserve.core.config import AsyncEngineArgs, EngineArgs
    from jaxserve.core.outputs import CompletionOutput, RequestOutput
    from jaxserve.core.params import RequestOutputKind, SamplingParams
    from jaxserve.engine.async_engine import AsyncEngine, AsyncLLMEngine
    from jaxserve.llm import LLM

# transformers advises every user to install PyTorch, which nothing here needs.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "AsyncEngine",
    "AsyncEngineArgs",
    "AsyncLLMEngine",
    "CompletionOutput",
    "EngineArgs",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "__version__",
]

_HOMES = {
    "LLM": "jaxserve.llm",
    "AsyncEngine": "jaxserve.engine.async_engine",
    "AsyncLLMEngine": "jaxserve.engine.async_engine",
    "AsyncEngineArgs": "jaxserve.core.config",
    "EngineArgs": "jaxserve.core.config",
    "SamplingParams": "jaxserve.core.params",
    "RequestOutputKind": "jaxserve.core.params",
    "CompletionOutput": "jaxserve.core.outputs",
    "RequestOutput": "jaxserve.core.outputs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxserve' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
