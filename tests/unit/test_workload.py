"""The benchmark's prompts: fixed for ever, because figures of different days and engines are compared on them."""

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest

from jaxserve.bench import record
from jaxserve.bench.workload import WorkItem, Workload, make_items, max_num_tokens, read_vocab_size
from jaxserve.core.errors import ConfigError


def digest_of(items: list[WorkItem]) -> str:
    hasher = hashlib.sha256()
    for item in items:
        hasher.update(np.asarray([*item.prompt_token_ids, item.num_output_tokens], np.int64).tobytes())
    return hasher.hexdigest()[:12]


@pytest.mark.parametrize(
    ("workload", "expected"),
    [
        (Workload(), "45873aca1e5b"),
        (Workload(kind="batch"), "f1cb4b4dfa1e"),
        (Workload(kind="offline", num_requests=48, lengths="lognormal"), "ea800bb429ea"),
        (Workload(kind="offline", num_requests=5, lengths="lognormal", shared_prefix=7, seed=3), "1d26289b3f48"),
        (Workload(kind="offline", num_requests=3), "ffadc525a27d"),
    ],
    ids=["decode1", "batch", "ragged", "shared_prefix", "fixed"],
)
def test_token_ids_never_change(workload: Workload, expected: str) -> None:
    assert digest_of(make_items(workload, 32000)) == expected


def test_ragged_lengths_stay_in_range_and_near_their_means() -> None:
    items = make_items(Workload(kind="offline", num_requests=4000, lengths="lognormal"), 32000)
    prompts = [len(item.prompt_token_ids) for item in items]
    outputs = [item.num_output_tokens for item in items]
    assert min(prompts) >= 4
    assert max(prompts) <= 8 * 128
    assert max(outputs) <= 8 * 64
    assert math.isclose(sum(prompts) / len(prompts), 128, rel_tol=0.1)
    assert math.isclose(sum(outputs) / len(outputs), 64, rel_tol=0.1)
    assert max_num_tokens(items) == max(p + o for p, o in zip(prompts, outputs, strict=True))


def test_prompts_avoid_special_tokens_and_share_the_prefix() -> None:
    items = make_items(Workload(kind="batch", batch=5, prompt_len=9, shared_prefix=6), 32000)
    assert len({tuple(item.prompt_token_ids[:6]) for item in items}) == 1
    assert len({tuple(item.prompt_token_ids[6:]) for item in items}) == 5
    assert min(min(item.prompt_token_ids) for item in items) >= 1000
    small = make_items(Workload(kind="batch"), 512)
    assert min(min(item.prompt_token_ids) for item in small) >= 128
    assert max(max(item.prompt_token_ids) for item in small) < 512


def test_vocabulary_is_read_from_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        read_vocab_size(tmp_path)
    (tmp_path / "config.json").write_text('{"vocab_size": 77}')
    assert read_vocab_size(tmp_path) == 77


def test_summary_takes_medians_and_leaves_single_tokens_out_of_tpot() -> None:
    passes = [
        record.Pass(wall_s=2.0, first_s=[0.5, 0.7], last_s=[1.5, 0.7], tokens=[[1, 2, 3], [4]]),
        record.Pass(wall_s=4.0, first_s=[1.0, 1.2], last_s=[3.0, 1.2], tokens=[[1, 2, 3], [4]]),
        record.Pass(wall_s=3.0, first_s=[0.6, 0.8], last_s=[2.0, 0.8], tokens=[[1, 2, 3], [4]]),
    ]
    summary = record.summarise(passes)
    assert summary["median_ms"] == 3000
    assert summary["spread"] == 2
    assert summary["tpot_ms"] == 700
    assert summary["best_tpot_ms"] == 500
    assert summary["ttft_ms"] == 700
    assert summary["output_tokens_per_s"] == pytest.approx(4 / 3, abs=0.01)
    assert summary["digest"] == record.digest([[1, 2, 3], [4]])
    assert record.digest([[1, 2], [3, 4]]) != record.digest([[1, 2], [4, 3]])


def test_digest_is_the_one_other_engines_print() -> None:
    assert record.digest([[1, 2, 3]]) == hashlib.sha256(np.array([1, 2, 3], "<i8").tobytes()).hexdigest()[:12]
