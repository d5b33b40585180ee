"""The mixture of experts against the same sums written plainly, in both of its forms, whatever the tokens pick."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxserve.layers.moe import MixtureOfExperts, all_experts, prefers_all, route, tiles_of

SIZE, WIDTH = 8, 6


def plain(x_TD: np.ndarray, layer: MixtureOfExperts, num_picked: int, normalize: bool) -> np.ndarray:
    """One token and one expert at a time, in float64."""
    router, gate_up, down = (
        np.asarray(p[...], np.float64) for p in (layer.router.weight, layer.experts.gate_up, layer.experts.down)
    )
    out = np.zeros(x_TD.shape)
    for t, x in enumerate(x_TD.astype(np.float64)):
        exponents = np.exp(router @ x - (router @ x).max())
        probs = exponents / exponents.sum()
        picked = np.argsort(-probs, kind="stable")[:num_picked]
        for e in picked:
            gate, up = np.split(gate_up[e] @ x, 2)
            weight = probs[e] / probs[picked].sum() if normalize else probs[e]
            out[t] += weight * (down[e] @ (gate / (1 + np.exp(-gate)) * up))
    return out


def make_layer(num_experts: int, num_picked: int, normalize: bool, seed: int = 0) -> MixtureOfExperts:
    sizes: dict[str, Any] = dict(
        num_experts=num_experts, num_here=num_experts, num_picked=num_picked, size=SIZE, width=WIDTH
    )
    layer = MixtureOfExperts(**sizes, normalize=normalize, dtype=jnp.dtype(jnp.float32))
    rng = np.random.default_rng(seed)
    for owner, name in ((layer.router, "weight"), (layer.experts, "gate_up"), (layer.experts, "down")):
        shape = getattr(owner, name)[...].shape
        setattr(owner, name, nnx.Param(jnp.asarray(rng.standard_normal(shape), jnp.float32)))
    return layer


def tokens(num_tokens: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num_tokens, SIZE)).astype(np.float32)


@settings(max_examples=12, deadline=None)
@given(
    num_tokens=st.sampled_from([1, 2, 7, 40]),
    experts=st.sampled_from([(1, 1), (3, 2), (8, 2), (8, 8), (20, 3)]),
    normalize=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_both_forms_are_the_plain_sum(num_tokens: int, experts: tuple[int, int], normalize: bool, seed: int) -> None:
    layer, x_TD = make_layer(*experts, normalize, seed), tokens(num_tokens, seed)
    want = plain(x_TD, layer, experts[1], normalize)
    got = jax.jit(lambda x: layer(x, jnp.ones(num_tokens, bool)))(x_TD)
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-5)
    weights_TE, _ = route(layer.router(jnp.asarray(x_TD)), experts[1], normalize)
    every = all_experts(jnp.asarray(x_TD), weights_TE, layer.experts.gate_up[...], layer.experts.down[...])
    np.testing.assert_allclose(every, want, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("num_tokens", [1, 6, 64])
def test_uneven_picks_have_room(num_tokens: int) -> None:
    """All tokens want the same experts: more tiles of one than an even spread has."""
    layer = make_layer(16, 2, True)
    x_TD = np.repeat(tokens(1), num_tokens, axis=0)
    got = layer(jnp.asarray(x_TD), jnp.ones(num_tokens, bool))
    np.testing.assert_allclose(got, plain(x_TD, layer, 2, True), rtol=2e-4, atol=2e-5)


def test_a_token_does_not_depend_on_the_others_nor_on_padding() -> None:
    layer, x_TD = make_layer(8, 3, False), tokens(12)
    alone = layer(jnp.asarray(x_TD), jnp.ones(12, bool))
    is_token_T = np.arange(12) < 5
    padding_TD = np.where(is_token_T[:, None], x_TD, np.nan)
    got = layer(jnp.asarray(padding_TD), jnp.asarray(is_token_T))
    np.testing.assert_array_equal(got[:5], alone[:5])
    np.testing.assert_array_equal(got[5:], 0)


def test_padding_fills_no_tile() -> None:
    picks_TE = np.zeros((16, 4), bool)
    assert int(tiles_of(jnp.asarray(picks_TE), 8, 32)[2]) == 0
    picks_TE[3, 2] = picks_TE[5, 2] = picks_TE[5, 0] = True
    tokens_IR, experts_I, num_filled = tiles_of(jnp.asarray(picks_TE), 8, 32)
    assert int(num_filled) == 2
    assert experts_I[:2].tolist() == [0, 2]
    assert (tokens_IR[0, 0], tokens_IR[1, :2].tolist()) == (5, [3, 5])
    assert (np.asarray(tokens_IR[0, 1:]) >= 16).all() and (np.asarray(tokens_IR[1, 2:]) >= 16).all()


def test_nan_stays_with_its_token() -> None:
    layer, x_TD = make_layer(8, 2, True), tokens(9)
    clean = layer(jnp.asarray(x_TD), jnp.ones(9, bool))
    x_TD[4] = np.nan
    got = np.asarray(layer(jnp.asarray(x_TD), jnp.ones(9, bool)))
    assert np.isnan(got[4]).all()
    others = np.arange(9) != 4
    np.testing.assert_array_equal(got[others], np.asarray(clean)[others])


def test_of_equals_the_first_are_picked() -> None:
    weights_TE, picks_TE = route(jnp.zeros((2, 5)), 2, True)
    np.testing.assert_array_equal(picks_TE, [[True, True, False, False, False]] * 2)
    np.testing.assert_array_equal(weights_TE[0], [0.5, 0.5, 0, 0, 0])


def test_all_experts_are_for_few_tokens_that_pick_most() -> None:
    assert [prefers_all(n, 128, 8) for n in (1, 15, 16, 256, 257)] == [False, False, True, True, False]


def test_bfloat16_is_close() -> None:
    layer, x_TD = make_layer(4, 2, True), tokens(10)
    want = layer(jnp.asarray(x_TD), jnp.ones(10, bool))
    for owner, name in ((layer.router, "weight"), (layer.experts, "gate_up"), (layer.experts, "down")):
        setattr(owner, name, nnx.Param(getattr(owner, name)[...].astype(jnp.bfloat16)))
    got = layer(jnp.asarray(x_TD, jnp.bfloat16), jnp.ones(10, bool))
    assert got.dtype == jnp.bfloat16
    close = np.abs(np.asarray(got, np.float32) - np.asarray(want)).max(-1) < 0.05 * np.abs(np.asarray(want)).max()
    assert close.mean() >= 0.8  # rounding may turn a close choice of expert
