"""What must be the same on every rank before a group begins, and what the ranks settle among themselves."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import jax
import msgspec

from jaxserve.core.checkpoint import is_converted, weight_files
from jaxserve.core.config import EngineConfig
from jaxserve.core.errors import ConfigError
from jaxserve.engine.group_messages import Hello
from jaxserve.runner.program_key import sources_digest

_OWN = ("model_path", "compilation_cache_dir", "check_inputs")  # a rank's own affair
_NUM_SAMPLES = 64
_SAMPLE_BYTES = 4096


def hello_of(config: EngineConfig) -> Hello:
    """This rank's numbers, and what its programs and weights depend on besides."""
    numbers = _flat("", asdict(config))
    num_pages = numbers.pop("cache.num_pages")
    for name in _OWN:
        del numbers[name]
    if config.load_format != "dummy":
        path = Path(config.model_path)
        files = [file for file in sorted(path.rglob("*")) if file.is_file()] if is_converted(path) else None
        numbers["checkpoint"] = sample_of(weight_files(path) if files is None else files)
    numbers |= {
        "jaxserve's sources": sources_digest(),
        "jax": jax.__version__,
        "device": jax.local_devices()[0].device_kind,
    }
    numbers["devices"] = jax.local_device_count()
    return Hello(msgspec.msgpack.decode(msgspec.msgpack.encode(numbers)), num_pages)  # as it looks when it arrives


def settle(own: Hello, others: Mapping[int, Hello]) -> int:
    """Pages of every rank's pool. Raises ConfigError, naming what differs and where."""
    for rank, other in others.items():
        names = sorted(own.settings.keys() | other.settings.keys())
        differing = [name for name in names if own.settings.get(name) != other.settings.get(name)]
        if differing:
            said = "; ".join(
                f"{name} is {own.settings.get(name)!r} on rank 0 and {other.settings.get(name)!r} on rank {rank}"
                for name in differing
            )
            raise ConfigError(f"the ranks are not started alike: {said}. Start each with the same model and flags.")
    return min(own.num_pages, *(other.num_pages for other in others.values()))


def with_pages(config: EngineConfig, num_pages: int) -> EngineConfig:
    return replace(config, cache=replace(config.cache, num_pages=num_pages))


def sample_of(files: list[Path]) -> str:
    """A digest of the files' sizes, of their beginnings and of samples throughout: another checkpoint has another.

    Reading all of a large checkpoint would take longer than loading one rank's part.
    """
    digest = blake2b(digest_size=16)
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for part in range(_NUM_SAMPLES):
                file.seek(size * part // _NUM_SAMPLES)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _flat(prefix: str, tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(f"{prefix}{name}.", value)
        else:
            flat[f"{prefix}{name}"] = value
    return flat
