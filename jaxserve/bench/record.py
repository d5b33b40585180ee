"""What stands beside every figure: the machine, the commit, the versions, and how noisy it was."""

import hashlib
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
DIGEST_CHARS = 12


@dataclass(frozen=True)
class Pass:
    """One timed pass over a workload. Times in seconds from the start of the pass, one entry a request.

    tokens: the output token ids of each request, in the workload's order.
    """

    wall_s: float
    first_s: list[float]
    last_s: list[float]
    tokens: list[list[int]]

    @property
    def num_output_tokens(self) -> int:
        return sum(len(tokens) for tokens in self.tokens)

    @property
    def ttft_ms(self) -> float:
        """Median over requests of the time to the first token."""
        return 1e3 * statistics.median(self.first_s)

    @property
    def tpot_ms(self) -> float | None:
        """Median over requests of the time per output token after the first; None where none has two."""
        each = [
            (last - first) / (len(tokens) - 1)
            for first, last, tokens in zip(self.first_s, self.last_s, self.tokens, strict=True)
            if len(tokens) > 1
        ]
        return 1e3 * statistics.median(each) if each else None

    @property
    def output_tokens_per_s(self) -> float:
        return self.num_output_tokens / self.wall_s


def summarise(passes: Sequence[Pass]) -> dict[str, object]:
    """Medians over the passes, the best of them, and their spread (slowest over fastest)."""
    walls = [one.wall_s for one in passes]
    tpots = [tpot for one in passes if (tpot := one.tpot_ms) is not None]
    rates = [one.output_tokens_per_s for one in passes]
    summary: dict[str, object] = {
        "median_ms": round(1e3 * statistics.median(walls), 3),
        "spread": round(max(walls) / min(walls), 3),
        "repeats": len(passes),
        "ttft_ms": round(statistics.median(one.ttft_ms for one in passes), 3),
        "output_tokens_per_s": round(statistics.median(rates), 2),
        "best_output_tokens_per_s": round(max(rates), 2),
        "digest": digest(passes[-1].tokens),
    }
    if tpots:
        summary |= {"tpot_ms": round(statistics.median(tpots), 4), "best_tpot_ms": round(min(tpots), 4)}
    return summary


def digest(token_lists: Iterable[Sequence[int]]) -> str:
    """Of all outputs in order: equal digests mean equal tokens."""
    hasher = hashlib.sha256()
    for tokens in token_lists:
        hasher.update(np.asarray(tokens, np.int64).tobytes())
    return hasher.hexdigest()[:DIGEST_CHARS]


def commit() -> str:
    """Short commit of the source tree, with '+' where files differ from it; 'unknown' outside a checkout."""
    head = _git("rev-parse", "--short=9", "HEAD")
    if head is None:
        return "unknown"
    return f"{head}+" if _git("status", "--porcelain", "--untracked-files=no") else head


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(["git", *args], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of the packages named, and Python's."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu_name() -> str:
    """Model, cores and vector extension of this machine's CPU, such as 'AMD EPYC, 2 cores, avx2'."""
    fields: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text().split("\n\n", 1)[0].splitlines()
        fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = fields.get("flags", "").split()
    vector = next((flag for flag in ("amx_tile", "avx512_bf16", "avx512f", "avx2") if flag in flags), "no avx2")
    return f"{fields.get('model name', platform.machine())}, {len(os.sched_getaffinity(0))} cores, {vector}"


def calibrate() -> dict[str, float]:
    """How fast this machine is just now: a float32 matrix product, a large copy, and the load average.

    On a shared machine two figures compare only where these agree.
    """
    side = 1024
    a = np.random.default_rng(0).standard_normal((side, side), dtype=np.float32)
    _ = a @ a
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < 0.3:
        _ = a @ a
        count += 1
    gflops = 2 * side**3 * count / (time.perf_counter() - start) / 1e9
    source = np.ones(64 << 20, dtype=np.uint8)
    target = np.empty_like(source)
    copies: list[float] = []
    for _ in range(6):
        start = time.perf_counter()
        np.copyto(target, source)
        copies.append(time.perf_counter() - start)
    return {
        "sgemm_gflops": round(gflops, 1),
        "copy_gbps": round(2 * source.nbytes / min(copies) / 1e9, 2),
        "load": round(os.getloadavg()[0], 2),
    }
