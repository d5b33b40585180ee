"""The sampler's promises: independence of the batch, nothing written by padding, bad logits stay in their row."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling_batches import fresh_state, load, load_row_jit, make_batch, sample_jit

from jaxserve.core.params import SamplingParams
from jaxserve.sampling.batch import SamplingBatch
from jaxserve.sampling.logprobs import token_logprobs, top_by_passes
from jaxserve.sampling.rows import RowSampling
from jaxserve.sampling.state import empty_state, load_bias

V, R, K = 300, 8, 6
EVERYTHING = SamplingParams(
    temperature=0.9,
    top_p=0.95,
    top_k=120,
    min_p=0.001,
    repetition_penalty=1.2,
    presence_penalty=0.3,
    frequency_penalty=0.2,
    logit_bias={5: 2.0, 9: -3.0},
    logprobs=K,
    seed=1234567890123,
)
PLAIN = SamplingParams(temperature=1.0, seed=11)


def random_logits(num_rows: int, seed: int = 0) -> Any:
    return (np.random.default_rng(seed).normal(size=(num_rows, V)) * 3).astype(np.float32)


def run(logits_BV: Any, batch: SamplingBatch, state: Any = None) -> tuple[Any, Any]:
    state = fresh_state(R, V) if state is None else state
    sampled, after = sample_jit(logits_BV, batch, state, num_logprobs=K)
    return jax.device_get(sampled), jax.device_get(after)


def needle(size: int, place: int, state_row: int) -> tuple[tuple[Any, ...], ...]:
    """The same request among `place` others, the batch padded to `size`; all that comes out of its row."""
    num_others = place
    params = [PLAIN] * num_others + [EVERYTHING]
    rows = [*[row for row in range(R) if row != state_row][:num_others], state_row]
    state = load(fresh_state(R, V), state_row, RowSampling(EVERYTHING, [1, 2, 5], [7, 7, 30], V, [0]))
    logits_BV = random_logits(size, seed=size)
    logits_BV[place] = random_logits(1, seed=99)[0]
    tokens = []
    for position in range(3, 11):
        batch = make_batch(params, num_rows=size, state_rows=rows, positions=[50 + place] * num_others + [position])
        sampled, state = run(logits_BV, batch, state)
        tokens.append(
            (
                int(sampled.token_ids_B[place]),
                sampled.logprob_B[place].tobytes(),
                int(sampled.rank_B[place]),
                sampled.top_ids_BK[place].tobytes(),
                sampled.top_logprobs_BK[place].tobytes(),
            )
        )
    return tuple(tokens)


def test_a_row_depends_on_its_seed_and_position_alone() -> None:
    alone = needle(1, 0, 0)
    assert len({token[0] for token in alone}) > 3
    assert needle(1, 0, 5) == alone
    assert needle(8, 0, 2) == alone
    assert needle(8, 3, 0) == alone
    assert needle(8, 7, 7) == alone


def test_seed_and_position_each_matter() -> None:
    logits_BV = np.zeros((8, V), np.float32)

    def draw(seeds: list[int], positions: list[int]) -> list[int]:
        batch = make_batch([PLAIN] * 8, seeds=seeds, positions=positions)
        return run(logits_BV, batch)[0].token_ids_B.tolist()

    base = draw([1] * 8, list(range(8)))
    assert len(set(base)) >= 7
    assert draw([1] * 8, [3] * 8) == [base[3]] * 8
    assert len(set(draw([0, 1, 2, 2**32, 2**33, 2**63, 2**64 - 1, 5], [3] * 8))) >= 7


def test_flags_only_save_time() -> None:
    logits_BV = random_logits(8)
    greedy = [SamplingParams(temperature=0)] * 8
    lean, _ = run(logits_BV, make_batch(greedy))
    full, _ = run(logits_BV, make_batch(greedy, all_flags=True))
    assert lean.token_ids_B.tolist() == full.token_ids_B.tolist() == logits_BV.argmax(-1).tolist()
    lean, _ = run(logits_BV, make_batch([PLAIN] * 8))
    full, _ = run(logits_BV, make_batch([PLAIN] * 8, all_flags=True))
    assert lean.token_ids_B.tolist() == full.token_ids_B.tolist()
    assert not lean.logprob_B.any()
    assert not lean.top_ids_BK.any()


def test_greedy_rows_stay_greedy_beside_random_ones() -> None:
    logits_BV = random_logits(8)
    sampled, _ = run(logits_BV, make_batch([SamplingParams(temperature=0), EVERYTHING] * 4))
    assert sampled.token_ids_B[::2].tolist() == logits_BV[::2].argmax(-1).tolist()


def test_padding_and_inactive_rows_write_nothing() -> None:
    state = jax.tree.map(np.asarray, fresh_state(R, V))
    batch = make_batch([EVERYTHING] * 2, num_rows=8, state_rows=[R - 1, 0])
    active_B = np.array(batch.is_active_B)
    active_B[1] = False
    sampled, after = run(random_logits(8), replace(batch, is_active_B=active_B), state)
    expected_RV = np.zeros((R, V), np.int32)
    expected_RV[R - 1, sampled.token_ids_B[0]] = 1
    np.testing.assert_array_equal(after.counts_RV, expected_RV)
    expected_R = np.array(state.last_tokens_R)
    expected_R[R - 1] = sampled.token_ids_B[0]
    np.testing.assert_array_equal(after.last_tokens_R, expected_R)
    np.testing.assert_array_equal(after.bias_RV, state.bias_RV)
    np.testing.assert_array_equal(after.prompt_mask_RV, state.prompt_mask_RV)


def test_generated_tokens_are_counted_and_penalised() -> None:
    params = SamplingParams(temperature=0, frequency_penalty=1.0)
    logits_BV = np.zeros((8, V), np.float32)
    logits_BV[:, [10, 11]] = [2.5, 2.0]
    state, tokens = fresh_state(R, V), []
    for _ in range(6):
        sampled, state = run(logits_BV, make_batch([params], num_rows=8, state_rows=[4]), state)
        tokens.append(int(sampled.token_ids_B[0]))
    assert tokens == [10, 11, 10, 11, 10, 0]
    assert state.counts_RV[4, [10, 11, 0]].tolist() == [3, 2, 1]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_logits_are_reported_and_stay_in_their_row(bad: float) -> None:
    logits_BV = random_logits(8)
    clean, _ = run(logits_BV, make_batch([EVERYTHING] * 8))
    logits_BV[3, 17] = bad
    dirty, _ = run(logits_BV, make_batch([EVERYTHING] * 8))
    assert (clean.token_ids_B >= 0).all()
    assert dirty.token_ids_B[3] == -1
    others = [0, 1, 2, 4, 5, 6, 7]
    np.testing.assert_array_equal(dirty.token_ids_B[others], clean.token_ids_B[others])
    np.testing.assert_array_equal(dirty.top_logprobs_BK[others], clean.top_logprobs_BK[others])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_with_everything_forbidden_is_reported_without_nan(temperature: float) -> None:
    forbid_V = np.full(V, -np.inf, np.float32)
    state = load_row_jit(fresh_state(R, V), 1, forbid_V, np.zeros(V, np.int32), np.zeros(V, np.bool_))
    params = SamplingParams(temperature=temperature, top_p=0.5, top_k=7, min_p=0.2, logprobs=2, logit_bias={1: 1})
    sampled, after = run(random_logits(8), make_batch([params] * 8), state)
    assert (sampled.token_ids_B >= 0).tolist() == [row != 1 for row in range(8)]
    assert not np.isnan(sampled.logprob_B).any()
    assert not np.isnan(sampled.top_logprobs_BK).any()
    assert sampled.token_ids_B[1] == -1
    assert 0 <= after.last_tokens_R[1] < V, "the next step may read it before the host knows"


def test_minus_infinity_from_the_model_is_allowed() -> None:
    logits_BV = np.full((8, V), -np.inf, np.float32)
    logits_BV[:, 42] = -5.0
    sampled, _ = run(logits_BV, make_batch([EVERYTHING] * 8))
    assert sampled.token_ids_B.tolist() == [42] * 8
    assert (sampled.token_ids_B >= 0).all()
    assert sampled.logprob_B.tolist() == [0.0] * 8


def test_extreme_logits_do_not_overflow() -> None:
    logits_BV = random_logits(8) * np.float32(1e36)
    params = SamplingParams(temperature=0.01, top_p=0.9, top_k=3, seed=1)
    sampled, _ = run(logits_BV, make_batch([params] * 8))
    assert sampled.token_ids_B.tolist() == logits_BV.argmax(-1).tolist()
    assert (sampled.token_ids_B >= 0).all()


def test_a_bias_of_100_forces_a_token() -> None:
    params = SamplingParams(temperature=2.0, logit_bias={77: 100})
    state = load(fresh_state(R, V), 0, RowSampling(params, [1], [], V, []))
    logits_BV = random_logits(8)
    for position in range(20):
        batch = make_batch([params], num_rows=8, positions=[position])
        assert run(logits_BV, batch, state)[0].token_ids_B[0] == 77


def test_sampled_logprob_is_the_entry_of_the_top_list() -> None:
    params = SamplingParams(temperature=0.3, logprobs=K)
    logits_BV = np.round(random_logits(8) * 2) / 2  # many ties
    found = 0
    for position in range(12):
        sampled, _ = run(logits_BV, make_batch([params] * 8, seeds=range(8), positions=[position] * 8))
        for token, logprob, rank, ids, values in zip(
            sampled.token_ids_B,
            sampled.logprob_B,
            sampled.rank_B,
            sampled.top_ids_BK,
            sampled.top_logprobs_BK,
            strict=True,
        ):
            assert (token in ids) == (rank <= K)
            if rank <= K:
                found += 1
                assert ids[rank - 1] == token
                assert values[rank - 1] == logprob
    assert found > 50


def test_token_logprobs_of_a_prompt() -> None:
    logits_TV = random_logits(5, seed=3)
    next_ids_T: Any = np.array([0, V - 1, 7, int(logits_TV[3].argmax()), 12], np.int32)
    logprob_T, rank_T, top_ids_TK, top_logprobs_TK = map(np.asarray, token_logprobs(logits_TV, next_ids_T, 4))
    exact_TV = logits_TV - np.log(np.exp(logits_TV.astype(np.float64)).sum(-1, keepdims=True))
    np.testing.assert_allclose(logprob_T, exact_TV[np.arange(5), next_ids_T], rtol=1e-5)
    assert rank_T.tolist() == [1 + int((row > row[i]).sum()) for row, i in zip(logits_TV, next_ids_T, strict=True)]
    assert rank_T[3] == 1
    assert top_logprobs_TK[3, 0] == logprob_T[3]
    np.testing.assert_array_equal(top_ids_TK, np.argsort(-logits_TV, axis=-1)[:, :4])
    np.testing.assert_allclose(top_logprobs_TK, np.take_along_axis(exact_TV, top_ids_TK, -1), rtol=1e-5)


def test_token_logprobs_of_the_whole_vocabulary_and_of_none() -> None:
    logits_TV = random_logits(2)[:, :10]
    ids_T: Any = np.array([4, 5], np.int32)
    assert token_logprobs(logits_TV, ids_T, 0)[2].shape == (2, 0)
    _, _, top_ids_TK, top_logprobs_TK = token_logprobs(logits_TV, ids_T, 99)
    assert np.sort(top_ids_TK).tolist() == [list(range(10))] * 2
    np.testing.assert_allclose(np.exp(top_logprobs_TK).sum(-1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("num", [1, 5, 20])
@pytest.mark.parametrize("kind", ["normal", "ties", "forbidden", "nothing_left"])
def test_a_list_by_passes_is_the_sorted_one(kind: str, num: int) -> None:
    rng = np.random.default_rng(num)
    logits_TV = rng.normal(size=(7, 40)) if kind == "normal" else rng.integers(-3, 3, (7, 40))
    logits_TV = logits_TV.astype(np.float32)
    if kind == "forbidden":
        logits_TV[rng.random(logits_TV.shape) < 0.8] = -np.inf
    if kind == "nothing_left":
        logits_TV[:] = -np.inf
    for got, want in zip(top_by_passes(jnp.asarray(logits_TV), num), jax.lax.top_k(logits_TV, num), strict=True):
        np.testing.assert_array_equal(got, want)


def test_rows_are_loaded_cleared_and_never_written_out_of_range() -> None:
    state = empty_state(3, 4)
    row: Any = np.int32(1)
    bias_V: Any = np.ones(4, np.float32)
    counts_V, mask_V = np.arange(4, dtype=np.int32), np.ones(4, np.bool_)
    state = load_row_jit(state, 1, bias_V, counts_V, mask_V)
    assert np.asarray(state.counts_RV).tolist() == [[0] * 4, [0, 1, 2, 3], [0] * 4]
    changed = load_bias(state, row, bias_V * 5)
    assert np.asarray(changed.bias_RV[1]).tolist() == [5.0] * 4
    assert np.asarray(changed.counts_RV[1]).tolist() == [0, 1, 2, 3]
    same = load_row_jit(state, 3, bias_V, counts_V, mask_V)
    jax.tree.map(np.testing.assert_array_equal, same, state)


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf])
def test_filters_end_on_a_row_without_meaning_and_leave_its_neighbours_alone(bad: float) -> None:
    """A NaN orders with nothing: the threshold search must end all the same, for padding rows too."""
    params = [SamplingParams(temperature=1.0, top_k=321, top_p=0.7, min_p=0.1, seed=i, logprobs=1) for i in range(3)]
    logits_BV = np.random.default_rng(0).standard_normal((4, 512)).astype(np.float32)
    clean, _ = sample_jit(logits_BV, make_batch(params, num_rows=4), empty_state(4, 512), num_logprobs=1)
    logits_BV[1, 7] = bad
    logits_BV[3, :] = bad  # padding
    sampled, _ = sample_jit(logits_BV, make_batch(params, num_rows=4), empty_state(4, 512), num_logprobs=1)
    assert (sampled.token_ids_B[:3] >= 0).tolist() == [True, False, True]
    np.testing.assert_array_equal(sampled.token_ids_B[np.array([0, 2])], clean.token_ids_B[np.array([0, 2])])
