"""Rotary position embedding in all its scalings: default, linear, dynamic, llama3, yarn, longrope.

Frequencies that depend on the configuration alone are worked out once on the host in float64;
dynamic and longrope also depend on how long the request is, so they take `rope_lens_T`.
"""

import math
from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxserve.core.config import RopeConfig

type FloatArray = np.ndarray[tuple[int, ...], np.dtype[np.floating]]


def rope_cos_sin(
    rope: RopeConfig, head_dim: int, positions_T: Int[Array, "T"], rope_lens_T: Int[Array, "T"]
) -> tuple[Float[Array, "T half"], Float[Array, "T half"]]:
    """cos and sin of every token's angles, float32, times the attention factor; half = head_dim / 2.

    rope_lens_T: sequence length by which dynamic and longrope choose frequencies, max(prompt
    tokens, position + 1) of the token's request; the other types ignore it.
    """
    angles_Th = positions_T.astype(jnp.float32)[:, None] * _frequencies(rope, head_dim, rope_lens_T)
    scale = np.float32(attention_factor(rope))
    return jnp.cos(angles_Th) * scale, jnp.sin(angles_Th) * scale


def apply_rope(
    x_TNH: Float[Array, "T N H"], cos_Th: Float[Array, "T half"], sin_Th: Float[Array, "T half"]
) -> Float[Array, "T N H"]:
    """Rotate the pairs (i, i + H/2) of every head; computed in float32, given back in x's dtype."""
    first, second = jnp.split(x_TNH.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos_Th[:, None, :], sin_Th[:, None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_TNH.dtype)


def _frequencies(rope: RopeConfig, head_dim: int, rope_lens_T: Int[Array, "T"]) -> Float[Array, "#T half"]:
    if rope.rope_type == "dynamic":
        return _dynamic_frequencies(rope, head_dim, rope_lens_T)
    short_h = jnp.asarray(inverse_frequencies(rope, head_dim))
    if rope.rope_type != "longrope":
        return short_h[None, :]
    long_h = jnp.asarray(inverse_frequencies(rope, head_dim, is_long=True))
    is_long_T = rope_lens_T > _original(rope)
    return jnp.where(is_long_T[:, None], long_h[None, :], short_h[None, :])


def _dynamic_frequencies(rope: RopeConfig, head_dim: int, rope_lens_T: Int[Array, "T"]) -> Float[Array, "T half"]:
    """The base grows with the sequence once it is longer than the trained context."""
    original = _original(rope)
    stretch_T = jnp.maximum(rope_lens_T, original).astype(jnp.float32) / original
    base_T = rope.theta * (rope.factor * stretch_T - (rope.factor - 1)) ** (head_dim / max(head_dim - 2, 1))
    return 1.0 / base_T[:, None] ** jnp.asarray(_exponents(head_dim), jnp.float32)[None, :]


@lru_cache(maxsize=64)
def inverse_frequencies(rope: RopeConfig, head_dim: int, *, is_long: bool = False) -> FloatArray:
    """Radians a position for each of the head_dim / 2 pairs, float32.

    is_long: longrope beyond its original context; no other type looks at it. Dynamic gives the
    frequencies within the original context.
    """
    frequencies = 1.0 / rope.theta ** _exponents(head_dim)
    match rope.rope_type:
        case "linear":
            frequencies = frequencies / rope.factor
        case "llama3":
            frequencies = _llama3(rope, frequencies)
        case "yarn":
            frequencies = _yarn(rope, frequencies, head_dim)
        case "longrope":
            frequencies = frequencies / np.asarray(rope.long_factor if is_long else rope.short_factor)
        case _:
            pass
    return frequencies.astype(np.float32)


def attention_factor(rope: RopeConfig) -> float:
    """What cos and sin are multiplied by: 1 but for yarn and longrope."""
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.rope_type == "longrope" and rope.factor > 1:
        return math.sqrt(1 + math.log(rope.factor) / math.log(_original(rope)))
    if rope.rope_type == "yarn":
        if rope.mscale and rope.mscale_all_dim:
            return _yarn_scale(rope.factor, rope.mscale) / _yarn_scale(rope.factor, rope.mscale_all_dim)
        return _yarn_scale(rope.factor, 1.0)
    return 1.0


def _yarn_scale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _llama3(rope: RopeConfig, frequencies: FloatArray) -> FloatArray:
    """Long wavelengths are stretched by the factor, short ones kept, those between blended."""
    wavelengths = 2 * math.pi / frequencies
    turns = _original(rope) / wavelengths  # full turns within the original context
    blend = np.clip((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0.0, 1.0)
    return (1 - blend) * frequencies / rope.factor + blend * frequencies


def _yarn(rope: RopeConfig, frequencies: FloatArray, head_dim: int) -> FloatArray:
    """Pairs that turn more than beta_fast times in the original context are kept, fewer than beta_slow stretched."""

    def pair_turning(turns: float) -> float:
        return head_dim * math.log(_original(rope) / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair_turning(rope.beta_fast), pair_turning(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # a step instead of a ramp
    stretched = np.clip((np.arange(head_dim // 2) - low) / (high - low), 0.0, 1.0)
    return frequencies / rope.factor * stretched + frequencies * (1 - stretched)


def _exponents(head_dim: int) -> FloatArray:
    return np.arange(0, head_dim, 2, dtype=np.float64) / head_dim


def _original(rope: RopeConfig) -> int:
    if rope.original_max_position_embeddings is None:
        raise ValueError(f"rope type {rope.rope_type} needs original_max_position_embeddings")
    return rope.original_max_position_embeddings
