"""The persistent compilation cache: a second start compiles nothing it has seen."""

import hashlib
from pathlib import Path

import jax
import jax.monitoring

from jaxserve.runner.processor import processor_features

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


def enable_compile_cache(directory: str | None) -> Path | None:
    """Keep compiled programs under `directory` (~/.cache/jaxserve if None, nowhere if "off").

    CPU code is only valid on the processor it was made for, so each kind of processor has a folder
    of its own. An unwritable place is no error: the engine compiles then.
    """
    if directory == "off":
        return None
    root = Path(directory).expanduser() if directory else Path.home() / ".cache" / "jaxserve"
    path = root / f"jax-{jax.__version__}-{_processor()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return path


def _processor() -> str:
    """A short name of this processor's instruction set."""
    return hashlib.sha256(processor_features().encode()).hexdigest()[:12]


class CompileCounter:
    """Counts the programs this process compiled (a hit in the persistent cache counts too)."""

    def __init__(self) -> None:
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    def _on_event(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == _COMPILE_EVENT:
            self.count += 1
