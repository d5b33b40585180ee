"""The device's sampler equals a plain sorting sampler in float64, over a pairwise matrix of all options."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_sampler import kept_ids, log_softmax, pairwise_rows, probabilities, processed_logits
from sampling_batches import fresh_state, load, make_batch, narrow_jit, process_jit, sample_jit
from scipy import stats

from jaxserve.core.params import SamplingParams
from jaxserve.layers.shards import Vocabulary
from jaxserve.sampling.filters import kept_together, kept_tokens, order_keys
from jaxserve.sampling.rows import RowSampling
from jaxserve.sampling.sampler import gumbel_noise

V, B, K = 97, 16, 5
EOS = [3]
OPTIONS: dict[str, list] = {
    "temperature": [0.0, 0.01, 0.7, 1.0, 2.0],
    "top_p": [1.0, 0.9, 0.3, 1e-6],
    "top_k": [0, 1, 5, V, V + 9],
    "min_p": [0.0, 0.05, 1.0],
    "repetition_penalty": [1.0, 0.1, 1.3, 100.0],
    "presence_penalty": [0.0, -2.0, 2.0],
    "frequency_penalty": [0.0, -2.0, 2.0],
    "logit_bias": [None, {5: 100.0, 6: -100.0}, {4: 1.5, 3: 2.0}],
    "allowed_token_ids": [None, [3, 4, 5, 6, 7, 8, 20, 40]],
    "bad_words_token_ids": [None, [[9], [4, 5]], [[20, 6], [20, 21, 7]]],
    "min_tokens": [0, 6],
    "stop_token_ids": [None, [7, 8]],
    "ignore_eos": [False, True],
    "logprobs": [None, 0, K],
    "seed": [None, 0, 2**63 - 1, -(2**63)],
    "prompt": [[1], [4, 5, 6, 4, 20]],
    "output": [[], [4], [9, 4, 4, 20, 21], [5, 5, 5, 5, 5, 5, 20]],
    "scale": [0.1, 1.0, 12.0],
}
ROWS = pairwise_rows(OPTIONS, 224, seed=1)


def make_case(row: dict, rng: np.random.Generator) -> tuple[SamplingParams, list[int], list[int], np.ndarray]:
    fields = {name: row[name] for name in row if name not in ("prompt", "output", "scale")}
    logits_V = (rng.normal(size=V) * row["scale"]).astype(np.float32)
    return SamplingParams(max_tokens=64, **fields), row["prompt"], row["output"], logits_V


def test_pairwise_matrix_is_complete() -> None:
    assert len(ROWS) >= 200
    names = list(OPTIONS)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            seen = {(repr(row[first]), repr(row[second])) for row in ROWS}
            assert len(seen) == len(OPTIONS[first]) * len(OPTIONS[second])


@pytest.mark.parametrize("start", range(0, len(ROWS), B))
def test_equals_reference(start: int) -> None:
    rng = np.random.default_rng(start)
    cases = [make_case(row, rng) for row in ROWS[start : start + B]]
    state = fresh_state(B, V)
    for index, (params, prompt, output, _) in enumerate(cases):
        state = load(state, index, RowSampling(params, prompt, output, V, EOS))
    logits_BV = np.zeros((B, V), np.float32)
    logits_BV[: len(cases)] = [case[3] for case in cases]
    batch = make_batch([case[0] for case in cases], num_rows=B)
    processed_BV = np.asarray(process_jit(logits_BV, batch, state))
    scaled_BV = np.asarray(narrow_jit(processed_BV, batch))
    sampled, after = jax.device_get(sample_jit(logits_BV, batch, state, num_logprobs=K))
    noise_BV = np.asarray(gumbel_noise(batch.seeds_B2, batch.positions_B, Vocabulary(V)))
    for i, (params, prompt, output, logits_V) in enumerate(cases):
        expected_V = processed_logits(logits_V, params, prompt, output, EOS)
        np.testing.assert_allclose(processed_BV[i], expected_V, rtol=2e-6, atol=2e-5)
        token = int(sampled.token_ids_B[i])
        if params.is_greedy:
            assert token == int(np.argmax(processed_BV[i]))
            assert expected_V[token] >= expected_V.max() - 1e-4
        else:
            check_random_choice(params, processed_BV[i], scaled_BV[i], noise_BV[i], token)
        check_logprobs(i, sampled, logits_V, token, wanted=bool(batch.use_logprobs))
        change_V = after.counts_RV[i] - np.asarray(state.counts_RV)[i]
        assert change_V.sum() == 1
        assert change_V[token] == 1
    assert (sampled.token_ids_B >= 0).all()


def check_random_choice(
    params: SamplingParams, processed_V: np.ndarray, scaled_V: np.ndarray, noise_V: np.ndarray, token: int
) -> None:
    plain_V = (processed_V - processed_V.max()) / np.float32(params.temperature)
    kept = set(np.flatnonzero(np.isfinite(scaled_V)).tolist())
    check_kept(kept, plain_V, params.top_k, params.top_p, params.min_p)
    np.testing.assert_allclose(
        probabilities(plain_V, kept), np.exp(scaled_V) / np.exp(scaled_V.astype(np.float64)).sum(), atol=2e-6
    )
    race_V = scaled_V.astype(np.float64) + noise_V
    assert token in kept
    assert race_V[token] >= race_V.max() - 1e-5


def check_kept(kept: set[int], scaled_V: np.ndarray, top_k: int, top_p: float, min_p: float) -> None:
    """Equal to the reference, but for tokens that float32 cannot tell from the threshold of top_p or min_p."""
    fewest = kept_ids(scaled_V, top_k, top_p * (1 - 2e-6) if top_p < 1 else 1.0, min(1.0, min_p * (1 + 2e-6)))
    most = kept_ids(scaled_V, top_k, min(1.0, top_p * (1 + 2e-6)), min_p * (1 - 2e-6))
    possible = {token for token in range(len(scaled_V)) if np.isfinite(scaled_V[token])}
    assert fewest & possible <= kept <= most


def check_logprobs(i: int, sampled: Any, logits_V: np.ndarray, token: int, *, wanted: bool) -> None:
    if not wanted:
        assert sampled.logprob_B[i] == 0
        return
    expected_V = log_softmax(logits_V)
    order = np.argsort(-logits_V, kind="stable")
    assert abs(sampled.logprob_B[i] - expected_V[token]) < 1e-4
    assert sampled.rank_B[i] == 1 + int(np.flatnonzero(order == token)[0])
    assert sampled.top_ids_BK[i].tolist() == order[:K].tolist()
    np.testing.assert_allclose(sampled.top_logprobs_BK[i], expected_V[order[:K]], rtol=1e-5, atol=1e-5)
    if sampled.rank_B[i] <= K:
        assert sampled.logprob_B[i] == sampled.top_logprobs_BK[i][sampled.rank_B[i] - 1]


kept_jit, kept_together_jit = jax.jit(kept_tokens), jax.jit(kept_together)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(["distinct", "ties", "flat", "steep", "tiny", "masked"]),
    top_k=st.integers(0, 130),
    top_p=st.one_of(st.just(1.0), st.floats(2.0**-20, 1.0, width=32)),
    min_p=st.one_of(st.just(0.0), st.floats(2.0**-20, 1.0, width=32)),
)
def test_kept_set_equals_sorting(seed: int, kind: str, top_k: int, top_p: float, min_p: float) -> None:
    rng = np.random.default_rng(seed)
    values_V = rng.normal(size=128)
    shaped_V = {
        "distinct": values_V * 3,
        "ties": np.round(values_V * 2) / 2,
        "flat": np.zeros(128),
        "steep": values_V * 1000,
        "tiny": -np.abs(values_V) * 1e-30,
        "masked": np.where(values_V > 1, values_V, -np.inf),
    }[kind].astype(np.float32)
    scaled_V = shaped_V - shaped_V.max()
    scaled_BV = np.stack([scaled_V, np.zeros(128, np.float32)])
    rows = [
        np.array([value, value], dtype)
        for value, dtype in ((top_k, np.int32), (top_p, np.float32), (min_p, np.float32))
    ]
    kept_BV = np.asarray(kept_jit(scaled_BV, *rows))
    np.testing.assert_array_equal(kept_BV, np.asarray(kept_together_jit(scaled_BV, *rows)))
    kept = set(np.flatnonzero(kept_BV[0] & np.isfinite(scaled_V)).tolist())
    check_kept(kept, scaled_V, top_k, float(np.float32(top_p)), float(np.float32(min_p)))
    assert kept_BV[1].all()  # equal tokens stand or fall together


def test_order_keys_sort_like_floats() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(-(2**31), 2**31, 4096).astype(np.int32)
    values = np.concatenate([bits.view(np.float32), np.array([0.0, -0.0, np.inf, -np.inf, 1.0, -1.0], np.float32)])
    values = values[~np.isnan(values)]
    values = np.where(np.abs(values) < np.finfo(np.float32).tiny, np.float32(0), values)  # XLA flushes denormals
    device_values: Any = values
    keys = np.asarray(order_keys(jnp.asarray(device_values))).astype(np.int64)
    order = np.argsort(values, kind="stable")
    assert (np.diff(keys[order]) >= 0).all()
    assert ((np.diff(keys[order]) == 0) == (np.diff(values[order].astype(np.float64)) == 0)).all()


LADDER = np.array([2.0, 1.5, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -2.0, -3.0, -4.0, -6.0], np.float32)
CHI_PARAMS = [
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.5),
    SamplingParams(temperature=2.0, min_p=0.05),
    SamplingParams(temperature=1.0, top_k=4),
    SamplingParams(temperature=1.0, top_p=0.8),
    SamplingParams(temperature=1.3, top_k=6, top_p=0.9, min_p=0.01),
]


@pytest.fixture(scope="module")
def draws() -> np.ndarray:
    """[parameters, positions, seeds] tokens sampled from the ladder."""
    num_seeds, num_positions = 512, 40
    state = fresh_state(1, len(LADDER))
    logits_BV = np.tile(LADDER, (num_seeds, 1))
    tokens = np.zeros((len(CHI_PARAMS), num_positions, num_seeds), np.int64)
    for i, params in enumerate(CHI_PARAMS):
        for position in range(num_positions):
            batch = make_batch([params] * num_seeds, seeds=range(num_seeds), positions=[position] * num_seeds)
            tokens[i, position] = sample_jit(logits_BV, batch, state, num_logprobs=0)[0].token_ids_B
    return tokens


@pytest.mark.parametrize("index", range(len(CHI_PARAMS)))
def test_frequencies_match_the_distribution(draws: np.ndarray, index: int) -> None:
    params = CHI_PARAMS[index]
    scaled_V = (LADDER - LADDER.max()) / np.float32(params.temperature)
    expected_V = probabilities(scaled_V, kept_ids(scaled_V, params.top_k, params.top_p, params.min_p))
    counts_V = np.bincount(draws[index].ravel(), minlength=len(LADDER))
    assert counts_V[expected_V == 0].sum() == 0
    possible = expected_V > 0
    result = stats.chisquare(counts_V[possible], expected_V[possible] * counts_V.sum())
    assert result.pvalue > 1e-3


@pytest.mark.parametrize("shift", [(0, 1), (1, 0), (1, 1)])
def test_neighbouring_positions_and_seeds_are_independent(draws: np.ndarray, shift: tuple[int, int]) -> None:
    tokens = np.minimum(draws[0], 5)
    later = tokens[shift[0] :, shift[1] :]
    earlier = tokens[: tokens.shape[0] - shift[0], : tokens.shape[1] - shift[1]]
    table = np.zeros((6, 6))
    np.add.at(table, (earlier.ravel(), later.ravel()), 1)
    result: Any = stats.chi2_contingency(table)
    assert result.pvalue > 1e-3


def test_noise_is_gumbel_to_the_far_tail() -> None:
    noise = np.asarray(
        jax.jit(gumbel_noise, static_argnums=2)(
            np.arange(64, dtype=np.uint32).reshape(32, 2), np.arange(32), Vocabulary(65536)
        )
    )
    assert np.isfinite(noise).all()
    assert stats.kstest(noise.ravel()[::8], "gumbel_r").pvalue > 1e-3
    tail = np.sort(noise.ravel())[-200:]
    assert len(np.unique(tail)) == 200  # a 23-bit uniform number would repeat here
    # The 200th largest of n Gumbel numbers lies near log(n / 200).
    assert abs(tail[0] - np.log(noise.size / 200)) < 0.3
