"""Which tokens top-k, top-p and min-p keep, without sorting the vocabulary.

Each filter is "everything at or above a threshold". The threshold is found by bisection on the bits
of the floats, until at most one token is left in doubt, so ties at the threshold are all kept. On GPUs
with jax-triton a kernel searches each row by several pivots at once.
"""

import logging
from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxserve.layers.shards import WHOLE, Shards
from pallas_kernels.jax_triton.door import missing, missing_on

_log = logging.getLogger(__name__)
_KEY_OF_NO_MASS = -0x42D00000  # of -104, whose exp() is 0 in float32


def order_keys(values: Float[Array, "..."]) -> Int[Array, "..."]:
    """int32 keys in the same order as the float32 values (-0.0 and 0.0 are equal; NaN has no order)."""
    return _flip_negative(lax.bitcast_convert_type(jnp.where(values == 0, 0.0, values), jnp.int32))


def _flip_negative(bits: Array) -> Array:
    """Between the bits of a float (sign and magnitude) and its key (two's complement), either way."""
    return jnp.where(bits < 0, jnp.int32(-0x80000000) - bits, bits)


def kept_tokens(
    scaled_BV: Float[Array, "B V"],
    top_k_B: Int[Array, " B"],
    top_p_B: Float[Array, " B"],
    min_p_B: Float[Array, " B"],
    implementation: str = "auto",
    shards: Shards = WHOLE,
) -> Bool[Array, "B V"]:
    """The tokens that min-p, then top-k, then top-p (of what is left, renormalised) keep.

    scaled_BV: logits over temperature, shifted so that each row's maximum is 0. At least the most
    likely token is kept. min-p keeps tokens of at least min_p times the best probability; top-k
    (0: all) the k most likely; top-p the smallest set of most likely tokens whose mass reaches p.
    implementation: "jax_triton" (NVIDIA GPUs, with jax-triton installed), "xla" or "auto": the first that can be had.
    shards: devices that have a slice of the vocabulary each; XLA alone serves them.

    In XLA a CPU takes row after row, which stays in its cache (twice as fast); a GPU all rows together.
    """
    if shards.axis is not None:
        return kept_together(scaled_BV, top_k_B, top_p_B, min_p_B, shards)
    if (implementation if implementation != "auto" else _choose()) == "jax_triton":
        return _kept_by_kernel(scaled_BV, top_k_B, top_p_B, min_p_B)
    return lax.platform_dependent(scaled_BV, top_k_B, top_p_B, min_p_B, cpu=_kept_by_row, default=kept_together)


@lru_cache(maxsize=1)
def _choose() -> str:
    if jax.default_backend() != "gpu":
        return "xla"
    reason = missing_on(jax.local_devices()[0])
    if reason is None:
        return "jax_triton"
    _log.warning("top-k and top-p run through XLA: %s", reason)
    return "xla"


def _kept_by_kernel(scaled_BV: Array, top_k_B: Array, top_p_B: Array, min_p_B: Array) -> Array:
    if reason := missing():
        raise ValueError(f"implementation='jax_triton' cannot be used: {reason}")
    from pallas_kernels.jax_triton.floors import raise_floors

    floor_B = raise_floors(scaled_BV, order_keys(jnp.log(min_p_B)), top_k_B, top_p_B)
    return order_keys(scaled_BV) >= floor_B[:, None]


def _kept_by_row(scaled_BV: Array, top_k_B: Array, top_p_B: Array, min_p_B: Array) -> Array:
    def one_row(row: tuple[Array, Array, Array, Array]) -> Array:
        scaled_V, top_k, top_p, min_p = row
        return kept_together(scaled_V[None], top_k[None], top_p[None], min_p[None])[0]

    return lax.map(one_row, (scaled_BV, top_k_B, top_p_B, min_p_B))


def kept_together(
    scaled_BV: Float[Array, "B V"],
    top_k_B: Int[Array, " B"],
    top_p_B: Float[Array, " B"],
    min_p_B: Float[Array, " B"],
    shards: Shards = WHOLE,
) -> Bool[Array, "B V"]:
    """`kept_tokens` with every pass over all rows at once."""
    keys_BV = order_keys(scaled_BV)
    floor_B = order_keys(jnp.log(min_p_B))
    to_top_k, to_top_p = partial(_raise_to_top_k, shards), partial(_raise_to_top_p, shards)
    floor_B = lax.cond(jnp.any(top_k_B > 0), to_top_k, _same_floor, floor_B, keys_BV, scaled_BV, top_k_B)
    floor_B = lax.cond(jnp.any(top_p_B < 1), to_top_p, _same_floor, floor_B, keys_BV, scaled_BV, top_p_B)
    return keys_BV >= floor_B[:, None]


def _same_floor(floor_B: Array, keys_BV: Array, scaled_BV: Array, parameter_B: Array) -> Array:
    return floor_B


def _raise_to_top_k(shards: Shards, floor_B: Array, keys_BV: Array, scaled_BV: Array, top_k_B: Array) -> Array:
    """The k-th most likely token's key where that is higher; k beyond the vocabulary keeps all."""
    is_used_B = top_k_B > 0
    low_B = -shards.largest(-jnp.min(keys_BV, axis=-1))
    target_B = top_k_B.astype(jnp.float32)
    key_B = _threshold(shards, keys_BV, jnp.ones_like(scaled_BV), target_B, low_B, is_used_B, jnp.ones_like)
    return jnp.maximum(floor_B, jnp.where(is_used_B, key_B, floor_B))


def _raise_to_top_p(shards: Shards, floor_B: Array, keys_BV: Array, scaled_BV: Array, top_p_B: Array) -> Array:
    """The highest key at which the mass of the tokens from it up is p of the mass from the floor up."""
    is_used_B = top_p_B < 1
    weights_BV = jnp.where(keys_BV >= floor_B[:, None], jnp.exp(scaled_BV), 0.0)
    target_B = top_p_B * shards.sum(jnp.sum(weights_BV, axis=-1))
    low_B = jnp.maximum(floor_B, _KEY_OF_NO_MASS)
    key_B = _threshold(shards, keys_BV, weights_BV, target_B, low_B, is_used_B, _mass_of_key)
    return jnp.where(is_used_B, key_B, floor_B)


def _mass_of_key(keys_B: Array) -> Array:
    return jnp.exp(lax.bitcast_convert_type(_flip_negative(keys_B), jnp.float32))


WeightAt = Callable[[Array], Array]


class _Bracket(NamedTuple):
    """Tokens from low_B up weigh enough (or low_B is as low as it goes), tokens from high_B up do not."""

    low_B: Array
    high_B: Array
    low_weight_B: Array
    high_weight_B: Array
    is_open_B: Array


def _threshold(
    shards: Shards,
    keys_BV: Array,
    weights_BV: Array,
    target_B: Array,
    low_B: Array,
    is_used_B: Array,
    weight_at: WeightAt,
) -> Array:
    """A key that parts the same tokens as the largest key from which upwards they weigh at least the target.

    keys_BV: at most 0. weight_at: the least weight of a token with that key or a higher one: a bracket
    that weighs less than two of them holds one token at most, and is closed. A closed row is not
    touched again, so that its result does not depend on the rows beside it.
    """

    def halve(bracket: _Bracket) -> _Bracket:
        low_B, high_B, low_weight_B, high_weight_B, is_open_B = bracket
        middle_B = low_B + (high_B - low_B) // 2
        weight_B = shards.sum(jnp.sum(jnp.where(keys_BV >= middle_B[:, None], weights_BV, 0.0), axis=-1))
        # Not `weight_B < target_B`: a NaN must close in on something too, or the loop would never end.
        rises_B, falls_B = is_open_B & (weight_B >= target_B), is_open_B & ~(weight_B >= target_B)
        low_B, high_B = jnp.where(rises_B, middle_B, low_B), jnp.where(falls_B, middle_B, high_B)
        low_weight_B = jnp.where(rises_B, weight_B, low_weight_B)
        high_weight_B = jnp.where(falls_B, weight_B, high_weight_B)
        holds_several_B = low_weight_B - high_weight_B >= 2 * weight_at(low_B)
        is_exact_B = low_weight_B == target_B
        return _Bracket(
            low_B, high_B, low_weight_B, high_weight_B, is_open_B & (high_B - low_B > 1) & holds_several_B & ~is_exact_B
        )

    nothing_B = jnp.zeros_like(target_B)
    start = _Bracket(low_B, jnp.ones_like(low_B), jnp.full_like(target_B, jnp.inf), nothing_B, is_used_B)
    return lax.while_loop(lambda bracket: jnp.any(bracket.is_open_B), halve, start).low_B
