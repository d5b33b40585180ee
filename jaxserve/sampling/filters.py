"""Which tokens top-k, top-p and min-p keep, without sorting the vocabulary.

Each filter is "everything at or above a threshold". The threshold is found exactly, by bisection
on the 32 bits of the floats, so ties at the threshold are all kept.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

_KEY_OF_MINUS_INF = -0x7F800000


def order_keys(values: Float[Array, "..."]) -> Int[Array, "..."]:
    """int32 keys in the same order as the float32 values (-0.0 and 0.0 are equal; NaN is undefined)."""
    bits = lax.bitcast_convert_type(jnp.where(values == 0, 0.0, values), jnp.int32)
    return jnp.where(bits < 0, jnp.int32(-0x80000000) - bits, bits)


def threshold_keys(
    keys_BV: Int[Array, "B V"], weights_BV: Float[Array, "B V"], target_B: Float[Array, " B"]
) -> Int[Array, " B"]:
    """The largest key such that the tokens at or above it together weigh at least the target.

    Keys are at most 0. Where even all tokens do not reach the target, the key of -inf.
    """

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low_B, high_B = bounds
        middle_B = low_B + (high_B - low_B) // 2
        weight_B = jnp.sum(jnp.where(keys_BV >= middle_B[:, None], weights_BV, 0.0), axis=-1)
        is_enough_B = weight_B >= target_B
        return jnp.where(is_enough_B, middle_B, low_B), jnp.where(is_enough_B, high_B, middle_B)

    low_B = jnp.full(target_B.shape, _KEY_OF_MINUS_INF, jnp.int32)
    return lax.fori_loop(0, 31, halve, (low_B, jnp.ones_like(low_B)))[0]


def kept_tokens(
    scaled_BV: Float[Array, "B V"],
    top_k_B: Int[Array, " B"],
    top_p_B: Float[Array, " B"],
    min_p_B: Float[Array, " B"],
) -> Bool[Array, "B V"]:
    """The tokens that min-p, then top-k, then top-p (of what is left, renormalised) keep.

    scaled_BV: logits over temperature, shifted so that each row's maximum is 0. At least the most
    likely token is kept. min-p keeps tokens of at least min_p times the best probability; top-k the
    k most likely; top-p the smallest set of most likely tokens whose mass reaches p.
    """
    keys_BV = order_keys(scaled_BV)
    ones_BV = jnp.ones_like(scaled_BV)
    min_p_key_B = order_keys(jnp.log(min_p_B))
    top_k_key_B = threshold_keys(keys_BV, ones_BV, top_k_B.astype(jnp.float32))
    floor_B = jnp.maximum(min_p_key_B, jnp.where(top_k_B > 0, top_k_key_B, _KEY_OF_MINUS_INF))
    weights_BV = jnp.where(keys_BV >= floor_B[:, None], jnp.exp(scaled_BV), 0.0)
    target_B = top_p_B * jnp.sum(weights_BV, axis=-1)
    top_p_key_B = threshold_keys(keys_BV, weights_BV, target_B)
    floor_B = jnp.maximum(floor_B, jnp.where(top_p_B < 1, top_p_key_B, _KEY_OF_MINUS_INF))
    return keys_BV >= floor_B[:, None]
