"""Datasets: lengths, sharing, seeds, and a ShareGPT file of our own."""

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxserve.bench.datasets import describe, make_dataset
from jaxserve.bench.flags import DatasetArgs
from jaxserve.bench.workload import WorkItem
from jaxserve.core.errors import ConfigError

VOCAB = 4096


def encode_words(text: str) -> list[int]:
    return [len(word) for word in text.split()]


def make(seed: int = 0, **fields: Any) -> list[WorkItem]:
    return make_dataset(DatasetArgs(**fields), VOCAB, seed, lambda: encode_words)


def lens(items: list[WorkItem]) -> tuple[list[int], list[int]]:
    return [len(item.prompt_token_ids) for item in items], [item.num_output_tokens for item in items]


def test_random_lengths_and_ids() -> None:
    inputs, outputs = lens(make(num_prompts=3))
    assert (inputs, outputs) == ([1024] * 3, [128] * 3)
    items = make(num_prompts=2000, random_input_len=10, random_output_len=4, random_range_ratio=0.5)
    inputs, outputs = lens(items)
    assert (min(inputs), max(inputs), min(outputs), max(outputs)) == (5, 15, 2, 6)
    assert np.mean(inputs) == pytest.approx(10, rel=0.03)
    ids = [token for item in items for token in item.prompt_token_ids]
    assert 1000 <= min(ids) < 1050 and VOCAB - 50 < max(ids) < VOCAB


def test_a_random_prefix_is_shared_and_comes_on_top() -> None:
    items = make(num_prompts=4, input_len=3, output_len=1, random_prefix_len=5)
    assert {tuple(item.prompt_token_ids[:5]) for item in items} == {tuple(items[0].prompt_token_ids[:5])}
    assert len({tuple(item.prompt_token_ids[5:]) for item in items}) == 4
    assert lens(items)[0] == [8] * 4


def test_conversation_lengths_are_lognormal_and_clipped() -> None:
    items = make(dataset_name="sharegpt", num_prompts=5000)
    inputs, outputs = (np.array(values) for values in lens(items))
    assert inputs.min() >= 4 and inputs.max() == 1024 and outputs.max() <= 1024
    assert outputs.mean() == pytest.approx(179, rel=0.05)
    assert 160 < inputs.mean() < 202  # the longest are clipped
    # The median of a lognormal is mean * exp(-sigma^2 / 2), and clipping does not move it.
    assert np.median(inputs) == pytest.approx(202 * np.exp(-(1.1**2) / 2), rel=0.06)
    assert np.median(outputs) == pytest.approx(179 * np.exp(-(0.8**2) / 2), rel=0.06)
    assert np.log(outputs[outputs < 1024]).std() == pytest.approx(0.8, rel=0.06)
    assert describe(items)["input_mean"] == pytest.approx(inputs.mean(), abs=0.01)


def test_prefixes_are_shared_by_equal_groups_in_no_order() -> None:
    names = ("prefix_len", "suffix_len", "num_prefixes", "output_len")
    sizes = {f"prefix_repetition_{name}": value for name, value in zip(names, (20, 6, 4, 9), strict=True)}
    items = make(dataset_name="prefix_repetition", num_prompts=32, **sizes)
    groups = [tuple(item.prompt_token_ids[:20]) for item in items]
    assert sorted(Counter(groups).values()) == [8] * 4
    assert groups[:8] != sorted(groups)[:8] and len(set(groups[:4])) > 1
    assert len({tuple(item.prompt_token_ids) for item in items}) == 32
    assert lens(items) == ([26] * 32, [9] * 32)


def test_long_contexts() -> None:
    assert lens(make(dataset_name="long", num_prompts=2)) == ([32768] * 2, [256] * 2)
    assert lens(make(dataset_name="long", num_prompts=1, input_len=5, output_len=2)) == ([5], [2])


@pytest.mark.parametrize("name", ["random", "sharegpt", "prefix_repetition", "long"])
def test_a_seed_is_a_dataset(name: str) -> None:
    fields: dict[str, Any] = {"dataset_name": name, "num_prompts": 3}
    assert make(seed=1, **fields) == make(seed=1, **fields)
    assert make(seed=1, **fields) != make(seed=2, **fields)


def test_a_sharegpt_file(tmp_path: Path) -> None:
    def conversation(num_in: int, num_out: int) -> dict[str, Any]:
        return {"conversations": [{"from": "human", "value": "a " * num_in}, {"from": "gpt", "value": "b " * num_out}]}

    good = [(5, 7), (6, 8), (1024, 1024)]
    bad = [(3, 10), (10, 3), (1025, 10), (1024, 1025)]
    path = tmp_path / "sharegpt.json"
    one_turn = {"conversations": [{"from": "human", "value": "hello there"}]}
    path.write_text(json.dumps([*(conversation(*sizes) for sizes in good + bad), one_turn]))
    fields: dict[str, Any] = {"dataset_name": "sharegpt", "dataset_path": str(path)}
    assert sorted(zip(*lens(make(num_prompts=3, **fields)), strict=True)) == good
    assert Counter(zip(*lens(make(num_prompts=6, **fields)), strict=True)) == dict.fromkeys(good, 2)
    assert set(lens(make(num_prompts=4, output_len=9, **fields))[1]) == {9}
    path.write_text("[]")
    with pytest.raises(ConfigError, match="no conversation"):
        make(**fields)
    for content in ("{", '[{"a": 1}]', "[1]", "3"):
        path.write_text(content)
        with pytest.raises(ConfigError, match="is no ShareGPT file"):
            make(**fields)
    with pytest.raises(ConfigError, match="cannot be read"):
        make(dataset_name="sharegpt", dataset_path=str(tmp_path / "none.json"))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"dataset_name": "sonnet"}, "must be one of random"),
        ({"dataset_path": "x.json"}, "read for sharegpt only"),
        ({"num_prompts": 0}, "num_prompts is 0"),
        ({"input_len": 0}, "input_len is 0"),
        ({"random_range_ratio": 1.0}, "random_range_ratio"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make(**fields)


def test_long_prompts_among_short_ones() -> None:
    items = make(dataset_name="mixed", num_prompts=400)
    longs = [index for index, item in enumerate(items) if item.kind == "long"]
    shorts = [item for item in items if item.kind == "short"]
    assert len(longs) == 40 and len(shorts) == 360
    assert {lens([items[index]])[0][0] for index in longs} == {8192}
    assert {items[index].num_output_tokens for index in longs} == {64}
    assert max(max(values) for values in lens(shorts)) <= 1024
    assert max(b - a for a, b in itertools.pairwise(longs)) > 12  # no regular pattern
    assert 0 < longs[0] < 60 and longs[-1] > 340
    again = make(dataset_name="sharegpt", num_prompts=400)  # lengths are drawn as sharegpt draws them
    for mixed, plain in zip(items, again, strict=True):
        if mixed.kind == "short":
            assert lens([mixed]) == lens([plain])
    found = describe(items)
    assert (found["long_num_prompts"], found["long_input_mean"], found["short_num_prompts"]) == (40, 8192, 360)
    assert found["input_mean"] == pytest.approx((40 * 8192 + 360 * found["short_input_mean"]) / 400, abs=0.01)


def test_mixed_lengths_shrink_together_for_a_small_model() -> None:
    fields: dict[str, Any] = {"dataset_name": "mixed", "num_prompts": 100, "mixed_long_share": 0.5}
    whole = make(**fields)
    small = make_dataset(DatasetArgs(**fields), VOCAB, 0, lambda: encode_words, 8256 // 4)
    for large, item in zip(whole, small, strict=True):
        for before, after in zip(lens([large]), lens([item]), strict=True):
            assert after[0] == max(1, before[0] // 4)
    assert max(item.num_tokens for item in small) == 8256 // 4
    assert make_dataset(DatasetArgs(**fields), VOCAB, 0, lambda: encode_words, 10**6) == whole
    with pytest.raises(ConfigError, match="mixed_long_share is 2"):
        make(dataset_name="mixed", mixed_long_share=2.0)
