"""The datasets of `bench throughput` and `bench serve`: seeded, nothing is downloaded.

Prompts are token ids, so that a length is exact. The order of draws is part of a dataset's definition: prompt
lengths, output lengths, shared prefixes or which ones are long, then one prompt after the other.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxserve.bench.flags import DATASETS, DatasetArgs
from jaxserve.bench.workload import FIRST_PLAIN_TOKEN, WorkItem, lognormal_lengths
from jaxserve.core.errors import ConfigError

Encode = Callable[[str], list[int]]

LONGEST_CONVERSATION = 1024  # tokens of a ShareGPT prompt and of its answer, at most
_LONGEST_TURNS = 2048  # of both together
_SHORTEST_TURN = 4


def make_dataset(
    args: DatasetArgs, vocab_size: int, seed: int, encode: Callable[[], Encode], max_model_len: int | None = None
) -> list[WorkItem]:
    """The requests that the flags describe.

    encode: makes a tokenizer's encoding; called only where a file of text is read. max_model_len: of the model, None
    where unknown; only `mixed` adapts to it. Raises ConfigError.
    """
    _check(args)
    rng = np.random.default_rng(seed)
    match args.dataset_name:
        case "random":
            return _random(args, vocab_size, rng)
        case "sharegpt" if args.dataset_path is not None:
            return _conversations(args, Path(args.dataset_path), encode(), rng)
        case "sharegpt":
            return _conversation_lengths(args, vocab_size, rng)
        case "prefix_repetition":
            return _shared_prefixes(args, vocab_size, rng)
        case "mixed":
            return _mixed(args, vocab_size, rng, max_model_len)
        case _:
            input_lens = [_first(args.input_len, args.long_input_len)] * args.num_prompts
            output_lens = [_first(args.output_len, args.long_output_len)] * args.num_prompts
            return _items(input_lens, output_lens, vocab_size, rng)


def changed_flags(args: DatasetArgs) -> dict[str, Any]:
    """What of the dataset was asked for in other words than the defaults; of a file its name alone."""
    default = vars(DatasetArgs())
    changed = {name: value for name, value in vars(args).items() if value != default[name]}
    return changed | ({"dataset_path": Path(args.dataset_path).name} if args.dataset_path else {})


def kinds_of(items: list[WorkItem]) -> list[str]:
    """The kinds of requests that are reported apart, in alphabetical order; empty where all are alike."""
    return sorted({item.kind for item in items} - {""})


def describe(items: list[WorkItem]) -> dict[str, Any]:
    """The lengths as drawn and clipped: their means and ends, of all and of each kind; how many of each there are."""
    found = _describe(items)
    for kind in kinds_of(items):
        some = [item for item in items if item.kind == kind]
        found |= {f"{kind}_{name}": value for name, value in ({"num_prompts": len(some)} | _describe(some)).items()}
    return found


def _describe(items: list[WorkItem]) -> dict[str, Any]:
    lens = {"input": [len(item.prompt_token_ids) for item in items], "output": [i.num_output_tokens for i in items]}
    return {
        f"{name}_{key}": round(float(of(values)), 2)
        for name, values in lens.items()
        for key, of in (("mean", np.mean), ("min", np.min), ("max", np.max))
    }


def random_ids(count: int, vocab_size: int, rng: np.random.Generator) -> list[int]:
    """Token ids, none of them from the low end of the vocabulary, where special tokens lie."""
    return rng.integers(min(FIRST_PLAIN_TOKEN, vocab_size // 4), vocab_size, count).tolist()


def _check(args: DatasetArgs) -> None:
    if args.dataset_name not in DATASETS:
        raise ConfigError(f"dataset_name is {args.dataset_name!r}, it must be one of {', '.join(DATASETS)}")
    if args.dataset_path is not None and args.dataset_name != "sharegpt":
        raise ConfigError(f"dataset_path is read for sharegpt only, and dataset_name is {args.dataset_name!r}")
    for name, value in vars(args).items():
        if name.endswith(("_len", "_prompts", "_prefixes")) and value is not None and not value >= 1:
            if name.endswith("_prefix_len") and value == 0:
                continue
            raise ConfigError(f"{name} is {value}, it must be at least 1")
    if not 0 <= args.mixed_long_share <= 1:
        raise ConfigError(f"mixed_long_share is {args.mixed_long_share}, it must be from 0 to 1")
    if not 0 <= args.random_range_ratio < 1:
        raise ConfigError(f"random_range_ratio is {args.random_range_ratio}, it must be at least 0 and below 1")


def _first(given: int | None, otherwise: int) -> int:
    return otherwise if given is None else given


def _items(
    input_lens: list[int], output_lens: list[int], vocab_size: int, rng: np.random.Generator, prefix_len: int = 0
) -> list[WorkItem]:
    prefix = random_ids(prefix_len, vocab_size, rng)
    return [
        WorkItem(prefix + random_ids(input_len, vocab_size, rng), output_len)
        for input_len, output_len in zip(input_lens, output_lens, strict=True)
    ]


def _random(args: DatasetArgs, vocab_size: int, rng: np.random.Generator) -> list[WorkItem]:
    def drawn(length: int) -> list[int]:
        low = max(1, math.floor(length * (1 - args.random_range_ratio)))
        high = math.ceil(length * (1 + args.random_range_ratio))
        return rng.integers(low, high + 1, args.num_prompts).tolist()

    input_lens = drawn(_first(args.input_len, args.random_input_len))
    output_lens = drawn(_first(args.output_len, args.random_output_len))
    return _items(input_lens, output_lens, vocab_size, rng, args.random_prefix_len)


def _conversation_lengths(args: DatasetArgs, vocab_size: int, rng: np.random.Generator) -> list[WorkItem]:
    input_lens, output_lens = _drawn_lengths(args, rng)
    return _items(input_lens, output_lens, vocab_size, rng)


def _drawn_lengths(args: DatasetArgs, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Lognormal lengths, kept within [4, 1024]: the means that vLLM published for ShareGPT, spreads of our choice."""
    count = args.num_prompts

    def drawn(fixed: int | None, mean: float, sigma: float) -> list[int]:
        return lognormal_lengths(rng, count, mean, sigma, LONGEST_CONVERSATION) if fixed is None else [fixed] * count

    input_lens = drawn(args.input_len, args.sharegpt_input_len, args.sharegpt_input_sigma)
    return input_lens, drawn(args.output_len, args.sharegpt_output_len, args.sharegpt_output_sigma)


def _mixed(args: DatasetArgs, vocab_size: int, rng: np.random.Generator, max_model_len: int | None) -> list[WorkItem]:
    """ShareGPT's lengths, and long prompts in random places among them. input_len, output_len: of the short ones.

    A model that takes fewer tokens than a long request has gets all lengths multiplied by the same factor.
    """
    long = (args.mixed_long_input_len, args.mixed_long_output_len)
    factor = 1.0 if max_model_len is None else min(1.0, max_model_len / sum(long))
    short_lens = zip(*_drawn_lengths(args, rng), strict=True)
    num_long = round(args.mixed_long_share * args.num_prompts)
    is_long = rng.permutation(np.arange(args.num_prompts) < num_long)
    items: list[WorkItem] = []
    for lens, wants_long in zip(short_lens, is_long, strict=True):
        input_len, output_len = (max(1, math.floor(factor * length)) for length in (long if wants_long else lens))
        kind = "long" if wants_long else "short"
        items.append(WorkItem(random_ids(input_len, vocab_size, rng), output_len, kind))
    return items


def _shared_prefixes(args: DatasetArgs, vocab_size: int, rng: np.random.Generator) -> list[WorkItem]:
    """Equally many prompts of each prefix (the first prefixes take the rest), shuffled."""
    num_prefixes = args.prefix_repetition_num_prefixes
    suffix_len = _first(args.input_len, args.prefix_repetition_suffix_len)
    output_len = _first(args.output_len, args.prefix_repetition_output_len)
    prefixes = [random_ids(args.prefix_repetition_prefix_len, vocab_size, rng) for _ in range(num_prefixes)]
    items = [
        WorkItem(prefixes[index % num_prefixes] + random_ids(suffix_len, vocab_size, rng), output_len)
        for index in range(args.num_prompts)
    ]
    return [items[index] for index in rng.permutation(len(items))]


def _conversations(args: DatasetArgs, path: Path, encode: Encode, rng: np.random.Generator) -> list[WorkItem]:
    """First turns of a ShareGPT file, shuffled; very short and very long ones are left out, as vLLM's bench does."""
    items: list[WorkItem] = []
    turns = _first_turns(path)
    for index in rng.permutation(len(turns)):
        prompt, answer = (encode(text) for text in turns[index])
        output_len = _first(args.output_len, len(answer))
        if min(len(prompt), output_len) < _SHORTEST_TURN:
            continue
        if len(prompt) > LONGEST_CONVERSATION or len(prompt) + output_len > _LONGEST_TURNS:
            continue
        items.append(WorkItem(prompt, output_len))
        if len(items) == args.num_prompts:
            return items
    if not items:
        raise ConfigError(f"dataset_path {str(path)!r}: no conversation with two turns of a usable length")
    return [items[index % len(items)] for index in range(args.num_prompts)]  # again from the start


def _first_turns(path: Path) -> list[tuple[str, str]]:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        conversations = [one["conversations"] for one in content]
        return [(turns[0]["value"], turns[1]["value"]) for turns in conversations if len(turns) >= 2]
    except OSError as error:
        raise ConfigError(f"dataset_path {str(path)!r} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f'dataset_path {str(path)!r} is no ShareGPT file: a JSON list of {{"conversations": [{{"value": text}}]}}'
        ) from error
