"""The persistent compilation cache: a second start compiles nothing it has seen."""

import threading
from pathlib import Path

import jax
import jax.monitoring
from jax.experimental.compilation_cache import compilation_cache

from jaxserve.runner.compiling import CompilerThread
from jaxserve.runner.processor import processor_digest

_AUTOTUNED = "xla_gpu_per_fusion_autotune_cache_dir"  # as JAX names the folder
_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


def enable_compile_cache(directory: str | None) -> Path | None:
    """Keep compiled programs under `directory` (~/.cache/jaxserve if None, nowhere if "off").

    JAX then also keeps what XLA's autotuner has measured on a GPU, in _AUTOTUNED below. An unwritable place
    is no error: the engine compiles then.
    """
    path = _cache_path(directory)
    if path is None:
        return None
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return path


def autotune_options(directory: str | None) -> dict[str, str | bool]:
    """XLA's options that make the autotuner use what it once measured, where the rest of the cache is off."""
    path = None if jax.default_backend() != "gpu" else _cache_path(directory)
    if path is None:
        return {}
    return {
        "xla_gpu_per_fusion_autotune_cache_dir": str(path / _AUTOTUNED),
        "xla_gpu_experimental_autotune_cache_mode": "AUTOTUNE_CACHE_MODE_UPDATE",
    }


def _cache_path(directory: str | None) -> Path | None:
    """The cache's folder for this JAX and processor, made if needed; None where there is none to be had.

    CPU code is only valid on the processor it was made for, so each kind of processor has a folder of its own.
    """
    if directory == "off":
        return None
    root = Path(directory).expanduser() if directory else Path.home() / ".cache" / "jaxserve"
    path = root / f"jax-{jax.__version__}-{processor_digest()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return path


def disable_compile_cache() -> None:
    """Compile everything anew. On a CPU a program that came from the cache cannot be written to a bundle: it would
    be found broken where it is loaded ("Function ... not found")."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX looks at the option once, at the first compilation


class CompileCounter:
    """Counts the programs this process compiled (a hit in the persistent cache counts too).

    count: those that somebody had to wait for; in_threads: those of the threads that compile (`ProgramMaker`).
    """

    def __init__(self) -> None:
        self.count = self.in_threads = 0
        self._lock = threading.Lock()
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    def _on_event(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event != _COMPILE_EVENT:
            return
        if isinstance(threading.current_thread(), CompilerThread):
            with self._lock:
                self.in_threads += 1
        else:
            self.count += 1
