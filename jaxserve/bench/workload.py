"""Seeded workloads of prompts as token ids, equal on every machine and in every engine they are given to."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxserve.core.errors import ConfigError

WorkloadKind = Literal["decode1", "batch", "offline"]
Lengths = Literal["fixed", "lognormal"]

MIN_RAGGED_TOKENS = 4
MAX_RAGGED_FACTOR = 8
FIRST_PLAIN_TOKEN = 1000  # special tokens lie at the low end of a vocabulary


@dataclass(frozen=True)
class Workload:
    """What to ask of an engine. The same fields give the same token ids, whoever runs them.

    kind: decode1 is one request; batch is `batch` equal requests at once; offline is `num_requests`
        requests, at most `batch` of them together.
    prompt_len, gen_len: tokens of each prompt and output; the means where lengths is lognormal.
    lengths: lognormal (offline only) draws ragged lengths, as conversations have them.
    sigma_in, sigma_out: spread of the logarithm of prompt and output lengths.
    shared_prefix: tokens every prompt begins with, on top of prompt_len.
    """

    kind: WorkloadKind = "decode1"
    prompt_len: int = 128
    gen_len: int = 64
    batch: int = 16
    num_requests: int = 64
    lengths: Lengths = "fixed"
    sigma_in: float = 1.1
    sigma_out: float = 0.8
    shared_prefix: int = 0
    seed: int = 0

    @property
    def num_rows(self) -> int:
        """Requests in the engine together, at most."""
        return 1 if self.kind == "decode1" else self.batch

    @property
    def num_items(self) -> int:
        """Requests in all."""
        return {"decode1": 1, "batch": self.batch, "offline": self.num_requests}[self.kind]


@dataclass(frozen=True)
class WorkItem:
    """One request: its prompt, and how many tokens it must give back (end-of-sequence is ignored).

    kind: reported apart from those of another kind; empty where all are alike.
    """

    prompt_token_ids: list[int]
    num_output_tokens: int
    kind: str = ""

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_token_ids) + self.num_output_tokens


def make_items(workload: Workload, vocab_size: int) -> list[WorkItem]:
    """The requests of a workload, in order.

    The order of draws is part of the definition: prompt lengths, output lengths, the shared prefix,
    then one prompt after the other.
    """
    rng = np.random.default_rng(workload.seed)
    prompt_lens, output_lens = _lengths(workload, rng)
    low = min(FIRST_PLAIN_TOKEN, vocab_size // 4)
    prefix = rng.integers(low, vocab_size, workload.shared_prefix).tolist()
    return [
        WorkItem(prefix + rng.integers(low, vocab_size, prompt_len).tolist(), output_len)
        for prompt_len, output_len in zip(prompt_lens, output_lens, strict=True)
    ]


def _lengths(workload: Workload, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    count = workload.num_items
    if workload.kind != "offline" or workload.lengths == "fixed":
        return [workload.prompt_len] * count, [workload.gen_len] * count
    mean_in, mean_out = workload.prompt_len, workload.gen_len
    prompt_lens = lognormal_lengths(rng, count, mean_in, workload.sigma_in, MAX_RAGGED_FACTOR * mean_in)
    return prompt_lens, lognormal_lengths(rng, count, mean_out, workload.sigma_out, MAX_RAGGED_FACTOR * mean_out)


def lognormal_lengths(rng: np.random.Generator, count: int, mean: float, sigma: float, longest: int) -> list[int]:
    """Whole lengths drawn from a lognormal of the given mean, then kept within [4, longest]."""
    drawn = rng.lognormal(np.log(mean) - sigma * sigma / 2, sigma, count)
    return [int(length) for length in np.clip(np.rint(drawn), MIN_RAGGED_TOKENS, longest)]


def max_num_tokens(items: list[WorkItem]) -> int:
    """The longest request, prompt and output together: the max_model_len it needs."""
    return max(item.num_tokens for item in items)


def read_vocab_size(model_dir: str | Path) -> int:
    """vocab_size of a local checkpoint. Raises ConfigError where the directory has no config.json."""
    path = Path(model_dir) / "config.json"
    if not path.is_file():
        raise ConfigError(
            f"model={str(model_dir)!r}: no config.json there; a benchmark needs a local checkpoint directory"
        )
    config: dict[str, Any] = json.loads(path.read_text())
    return int(config.get("text_config", config)["vocab_size"])
