"""Rotary frequencies against formulas written out pair by pair, and the rotation's own laws."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxserve.core.config import RopeConfig
from jaxserve.layers.rotary import apply_rope, attention_factor, inverse_frequencies, rope_cos_sin

H = 16


def angles(rope: RopeConfig, positions: list[int], rope_lens: list[int] | None = None) -> np.ndarray:
    """Angles [T, H/2] of a rope without attention factor, from cos and sin, in (-pi, pi]."""
    lens = positions if rope_lens is None else rope_lens
    cos_Th, sin_Th = rope_cos_sin(rope, H, jnp.array(positions), jnp.array(lens))
    return np.arctan2(np.asarray(sin_Th), np.asarray(cos_Th))


def plain(theta: float = 10000.0) -> np.ndarray:
    return np.array([theta ** (-2 * i / H) for i in range(H // 2)])


def test_default_and_linear() -> None:
    np.testing.assert_allclose(inverse_frequencies(RopeConfig(theta=500.0), H), plain(500.0), rtol=1e-6)
    np.testing.assert_allclose(inverse_frequencies(RopeConfig("linear", factor=4.0), H), plain() / 4, rtol=1e-6)
    np.testing.assert_allclose(angles(RopeConfig(), [0, 1, 3]), np.outer([0, 1, 3], plain()), atol=1e-6)


def test_llama3_keeps_short_stretches_long_and_blends_between() -> None:
    rope = RopeConfig("llama3", factor=8.0, original_max_position_embeddings=128)
    for kept, ours in zip(plain(), inverse_frequencies(rope, H), strict=True):
        wavelength = 2 * math.pi / kept
        if wavelength < 128 / 4:
            assert ours == pytest.approx(kept)
        elif wavelength > 128 / 1:
            assert ours == pytest.approx(kept / 8)
        else:
            smooth = (128 / wavelength - 1) / (4 - 1)
            assert ours == pytest.approx((1 - smooth) * kept / 8 + smooth * kept)


def test_yarn_keeps_fast_pairs_and_stretches_slow_ones() -> None:
    rope = RopeConfig("yarn", factor=4.0, original_max_position_embeddings=256)
    ratio = inverse_frequencies(rope, H) / plain()
    assert ratio[0] == pytest.approx(1.0)
    assert ratio[-1] == pytest.approx(0.25)
    assert (np.diff(ratio) <= 1e-6).all()
    turns = 256 * plain() / (2 * math.pi)
    assert ratio[turns < 1] == pytest.approx(0.25)


def test_dynamic_changes_only_beyond_the_trained_length() -> None:
    rope = RopeConfig("dynamic", factor=2.0, original_max_position_embeddings=32)
    np.testing.assert_allclose(angles(rope, [1, 1, 1], [2, 31, 32]), np.tile(plain(), (3, 1)), rtol=1e-5)
    base = 10000.0 * (2.0 * 48 / 32 - 1.0) ** (H / (H - 2))
    np.testing.assert_allclose(angles(rope, [1], [48])[0], plain(base), rtol=1e-5)


def test_longrope_chooses_by_the_length_of_the_request() -> None:
    short, long = tuple(1.0 + i / 10 for i in range(8)), tuple(2.0 + i for i in range(8))
    rope = RopeConfig(
        "longrope",
        factor=4.0,
        attention_factor=1.0,
        original_max_position_embeddings=64,
        short_factor=short,
        long_factor=long,
    )
    found = angles(rope, [1, 1, 1], [2, 64, 65])
    np.testing.assert_allclose(found[:2], np.tile(plain() / np.array(short), (2, 1)), rtol=1e-5)
    np.testing.assert_allclose(found[2], plain() / np.array(long), rtol=1e-5)


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        (RopeConfig(), 1.0),
        (RopeConfig("linear", factor=4.0), 1.0),
        (RopeConfig("yarn", factor=4.0), 0.1 * math.log(4) + 1),
        (RopeConfig("yarn", factor=0.5), 1.0),
        (RopeConfig("yarn", factor=4.0, attention_factor=1.25), 1.25),
        (RopeConfig("yarn", factor=4.0, mscale=1.0, mscale_all_dim=1.0), 1.0),
        (
            RopeConfig("longrope", factor=4.0, original_max_position_embeddings=64),
            math.sqrt(1 + math.log(4) / math.log(64)),
        ),
        (RopeConfig("longrope", factor=1.0, original_max_position_embeddings=64), 1.0),
    ],
)
def test_attention_factor(rope: RopeConfig, expected: float) -> None:
    assert attention_factor(rope) == pytest.approx(expected)


def test_the_attention_factor_scales_cos_and_sin() -> None:
    rope = RopeConfig("yarn", factor=4.0, attention_factor=1.5, original_max_position_embeddings=64)
    cos_Th, sin_Th = rope_cos_sin(rope, H, jnp.arange(5), jnp.arange(5))
    np.testing.assert_allclose(np.hypot(cos_Th, sin_Th), 1.5, rtol=1e-6)


def test_rotation_keeps_lengths_and_depends_on_distance_alone() -> None:
    rng = np.random.default_rng(0)
    q_TNH, k_TNH = (jnp.tile(jnp.asarray(rng.standard_normal((1, 2, H)), jnp.float32), (9, 1, 1)) for _ in range(2))
    cos_Th, sin_Th = rope_cos_sin(RopeConfig(), H, jnp.arange(9), jnp.arange(9))
    q, k = apply_rope(q_TNH, cos_Th, sin_Th), apply_rope(k_TNH, cos_Th, sin_Th)
    np.testing.assert_allclose(jnp.linalg.norm(q, axis=-1), jnp.linalg.norm(q_TNH, axis=-1), rtol=1e-5)
    scores_TS = np.asarray(jnp.einsum("TNH,SNH->TS", q, k))
    for distance in range(5):
        np.testing.assert_allclose(np.diag(scores_TS, -distance), scores_TS[distance, 0], atol=1e-4)


def test_half_precision_is_rotated_in_float32() -> None:
    x_TNH = jnp.asarray(np.random.default_rng(1).standard_normal((3, 2, H)), jnp.bfloat16)
    cos_Th, sin_Th = rope_cos_sin(RopeConfig(), H, jnp.array([5, 900, 7]), jnp.array([5, 900, 7]))
    rotated = apply_rope(x_TNH, cos_Th, sin_Th)
    assert rotated.dtype == jnp.bfloat16
    exact = apply_rope(x_TNH.astype(jnp.float32), cos_Th, sin_Th)
    np.testing.assert_array_equal(np.asarray(rotated), np.asarray(exact.astype(jnp.bfloat16)))
