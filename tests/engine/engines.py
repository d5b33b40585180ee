"""Small engines for the tests of this folder: few shapes, so that they start quickly."""

from pathlib import Path
from typing import Any

SMALL: dict[str, Any] = {
    "max_num_seqs": 4,
    "max_num_batched_tokens": 32,
    "kv_cache_memory_bytes": 1 << 20,
    "disable_log_stats": True,
}


def small_args(checkpoint: Path, **changes: Any) -> dict[str, Any]:
    """Keyword arguments of EngineArgs or LLM."""
    return {"model": str(checkpoint), **SMALL, **changes}
