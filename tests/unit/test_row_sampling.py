"""What the host loads for a request, and when it changes: allowed ids, biases, bad words, min_tokens, counts."""

from typing import Any

import numpy as np

from jaxserve.core.params import SamplingParams
from jaxserve.sampling.rows import RowSampling

V = 50
EOS = [2, 3]


def start(prompt: tuple[int, ...] = (1,), output: tuple[int, ...] = (), **fields: Any) -> RowSampling:
    return RowSampling(SamplingParams(max_tokens=99, **fields), prompt, output, V, EOS)


def banned(bias_V: np.ndarray | None) -> list[int]:
    return [] if bias_V is None else np.flatnonzero(np.isneginf(bias_V)).tolist()


def test_a_plain_request_loads_nothing() -> None:
    row = start()
    assert row.bias_V is None
    assert row.counts_V is None
    assert row.prompt_mask_V is None
    assert not row.has_bias
    assert not row.has_penalties
    assert row.update(5) is None


def test_allowed_ids_and_bias_and_single_bad_words() -> None:
    row = start(allowed_token_ids=[4, 5, 6], logit_bias={5: 1.5, 9: 3.0}, bad_words_token_ids=[[6]])
    assert row.bias_V is not None
    assert row.bias_V.dtype == np.float32
    assert np.flatnonzero(np.isfinite(row.bias_V)).tolist() == [4, 5]
    assert row.bias_V[5] == 1.5
    assert row.update(4) is None
    assert row.has_bias


def test_ids_outside_the_vocabulary_are_ignored() -> None:
    row = start(stop_token_ids=[V, V + 7, 11], min_tokens=1, logit_bias={V: 1.0, 1: 1.0})
    assert banned(row.bias_V) == [2, 3, 11]


def test_min_tokens_forbids_ends_until_reached() -> None:
    row = start(min_tokens=2, stop_token_ids=[7])
    assert banned(row.bias_V) == [2, 3, 7]
    assert row.update(5) is None
    bias_V = row.update(5)
    assert bias_V is not None
    assert not bias_V.any()
    assert not row.has_bias
    assert row.update(2) is None


def test_min_tokens_with_ignored_eos_and_after_preemption() -> None:
    assert banned(start(min_tokens=1, stop_token_ids=[7], ignore_eos=True).bias_V) == [7]
    assert start(min_tokens=1, ignore_eos=True).bias_V is None
    assert banned(start(output=(9,), min_tokens=2).bias_V) == [2, 3]
    assert start(output=(9, 9), min_tokens=2).bias_V is None


def test_long_bad_words_are_forbidden_where_their_beginning_stands() -> None:
    row = start(bad_words_token_ids=[[10, 11], [10, 12, 13], [12, 12, 14]])
    assert row.bias_V is None
    assert banned(row.update(10)) == [11]
    assert banned(row.update(12)) == [13]
    assert banned(row.update(12)) == [14]
    assert row.update(12) is None
    assert row.has_bias
    released_V = row.update(1)
    assert released_V is not None
    assert not released_V.any()
    assert banned(row.update(10)) == [11]


def test_bad_words_match_generated_tokens_only() -> None:
    assert start(prompt=(10,), bad_words_token_ids=[[10, 11]]).bias_V is None
    assert banned(start(output=(10,), bad_words_token_ids=[[10, 11]]).bias_V) == [11]


def test_a_release_keeps_what_is_fixed() -> None:
    row = start(logit_bias={4: 2.0}, bad_words_token_ids=[[6], [10, 11]], min_tokens=1)
    assert banned(row.bias_V) == [2, 3, 6]
    assert banned(row.update(10)) == [6, 11]
    last_V = row.update(4)
    assert banned(last_V) == [6]
    assert last_V is not None
    assert last_V[4] == 2.0


def test_counts_and_prompt_mask_only_for_penalties() -> None:
    for penalty in ({"repetition_penalty": 1.1}, {"presence_penalty": 0.1}, {"frequency_penalty": -0.1}):
        row = start(prompt=(1, 1, 8), output=(4, 4, 9), **penalty)
        assert row.has_penalties
        assert row.counts_V is not None
        assert row.prompt_mask_V is not None
        assert np.flatnonzero(row.prompt_mask_V).tolist() == [1, 8]
        assert {int(i): int(row.counts_V[i]) for i in np.flatnonzero(row.counts_V)} == {4: 2, 9: 1}
        assert row.bias_V is None


def test_earlier_biases_are_not_overwritten() -> None:
    row = start(bad_words_token_ids=[[10, 11]])
    first_V = row.update(10)
    second_V = row.update(1)
    assert banned(first_V) == [11]
    assert banned(second_V) == []
