"""Results of the `jaxserve bench` commands: what stands beside every figure, the JSON, the table."""

import datetime
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxserve.bench import record
from jaxserve.core.errors import ConfigError
from jaxserve.demo import DEMO_MODEL_NAME, demo_checkpoint

_WIDTH = 50
_NAMES = {
    "ttft": "Time to First Token",
    "tpot": "Time per Output Token (excl. 1st token)",
    "itl": "Inter-token Latency",
    "e2el": "End-to-end Latency",
}
_SECRET_FLAGS = ("--api-key", "--header")


def base(benchmark: str, argv: Sequence[str]) -> dict[str, Any]:
    """The fields that every record begins with; argv: what the benchmark was called with."""
    return {
        "benchmark": benchmark,
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": record.commit(),
        "versions": record.versions("jaxserve", "jax", "jaxlib", "flax", "numpy", "httpx", "jax-cuda13-plugin"),
        "command": command(benchmark, argv),
    }


def command(benchmark: str, argv: Sequence[str]) -> str:
    """As it was called, without keys and without folders: a record says nothing about where things lay."""
    words = [flag + equals + _file_name(value) for flag, equals, value in map(_parts, without_secrets(argv))]
    return f"jaxserve bench {benchmark} {shlex.join(words)}".rstrip()


def model_name(model_path: str) -> str:
    """The checkpoint's directory by its name alone; a hub id as it is."""
    return DEMO_MODEL_NAME if model_path == str(demo_checkpoint()) else _file_name(model_path)


def _parts(word: str) -> tuple[str, str, str]:
    """("--model", "=", "/a/b") of "--model=/a/b"; a word by itself is the third."""
    flag, equals, value = word.partition("=")
    return (flag, equals, value) if equals and word.startswith("--") else ("", "", word)


def _file_name(text: str) -> str:
    """Of an absolute path to something that is there, or in a folder that is, its last part; else the text."""
    path = Path(text)
    return path.name if len(path.parts) > 2 and path.is_absolute() and path.parent.is_dir() else text


def device_name(device: str) -> str:
    """Of an engine's device, as records name it."""
    return record.cpu_name() if device == "cpu" else device


def without_secrets(argv: Sequence[str]) -> list[str]:
    """The arguments, keys and headers blotted out."""
    shown: list[str] = []
    hides = False
    for word in argv:
        flag, equals, _ = word.partition("=")
        if word.startswith("-"):
            hides = flag in _SECRET_FLAGS
            shown.append(f"{flag}=***" if hides and equals else word)
        else:
            shown.append("***" if hides else word)
    return shown


def percentiles_of(seconds: Sequence[float]) -> dict[str, float]:
    """The percentiles that vLLM's latency and startup benchmarks report."""
    return {str(q): round(float(np.percentile(seconds, q)), 6) for q in (10, 25, 50, 75, 90, 99)}


def write(path: str | Path, result: Mapping[str, Any], append: bool = False) -> None:
    """One JSON line; append: after what the file holds. Raises ConfigError where the file cannot be written."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with Path(path).open("a" if append else "w", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


def check_writable(path: str | Path | None) -> None:
    """Raises ConfigError before the work, not after it. An existing file keeps its content."""
    if path is None:
        return
    if Path(path).is_dir():
        raise ConfigError(f"{path} is a directory: name a file")
    is_new = not Path(path).exists()
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).open("a").close()
        if is_new:
            Path(path).unlink()
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


def serving_table(
    result: Mapping[str, Any], names: Sequence[str], kinds: Mapping[str, Mapping[str, Any]] | None = None
) -> str:
    """The table that vLLM's bench prints; '-' where nothing was measured. kinds: parts of it again, by name."""
    lines = [_centred(" Serving Benchmark Result ", "=")]
    rows = [
        ("Successful requests:", "completed"),
        ("Failed requests:", "failed"),
        ("Maximum request concurrency:", "max_concurrency"),
        ("Request rate configured (RPS):", "request_rate"),
        ("Benchmark duration (s):", "duration"),
        ("Total input tokens:", "total_input_tokens"),
        ("Total generated tokens:", "total_output_tokens"),
        ("Request throughput (req/s):", "request_throughput"),
        ("Request goodput (req/s):", "request_goodput"),
        ("Output token throughput (tok/s):", "output_throughput"),
        ("Peak output token throughput (tok/s):", "max_output_tokens_per_s"),
        ("Peak concurrent requests:", "max_concurrent_requests"),
        ("Total token throughput (tok/s):", "total_token_throughput"),
    ]
    optional = ("max_concurrency", "request_goodput", "request_rate")
    shown = [(label, key) for label, key in rows if key not in optional or result[key] not in (None, "inf")]
    lines += [_row(label, result[key]) for label, key in shown]
    for name in names:
        lines += [_centred(_NAMES[name], "-"), *_time_rows(result, name)]
    for kind, figures in (kinds or {}).items():
        lines.append(_centred(f"The {kind} requests alone", "-"))
        some = ("completed", "request_goodput")
        lines += [_row(label, figures[key]) for label, key in shown if key in some]
        for name in names:
            lines += _time_rows(figures, name)
    return "\n".join([*lines, "=" * _WIDTH])


def _time_rows(figures: Mapping[str, Any], name: str) -> list[str]:
    rows: list[str] = []
    for key, value in figures.items():
        if found := re.fullmatch(rf"(mean|median|p[\d.]+)_{name}_ms", key):
            rows.append(_row(f"{found[1].capitalize()} {name.upper()} (ms):", value))
    return rows


def _centred(title: str, fill: str) -> str:
    return title.center(_WIDTH, fill)


def _row(label: str, value: Any) -> str:
    shown = "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
    return f"{label:<40} {shown:<10}".rstrip()
