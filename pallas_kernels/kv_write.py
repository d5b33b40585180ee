"""Writing new keys and values into a layer's paged pool."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def write_kv(
    pool_P2KZH: Float[Array, "P 2 K Z Hp"],
    k_TKH: Float[Array, "T K H"],
    v_TKH: Float[Array, "T K H"],
    slots_T: Int[Array, " T"],
    pool_scale_2K: Float[Array, "2 K"] | None = None,
) -> Float[Array, "P 2 K Z Hp"]:
    """Put each token's key and value at its slot (`page_id * Z + offset`) and return the pool.

    A slot of `P * Z` or more is padding and is dropped; a negative slot is a bug of the caller (JAX
    would write from the end). In a jitted step that donates the pool XLA does this in place.
    pool_scale_2K: what is stored is key or value over its head's scale; None for 1. What a narrower pool
    cannot hold is stored as its largest finite value; NaN stays NaN. A pool of wider heads (Hp > H) gets
    zeros behind them: attention relies on the padding of written tokens being finite.
    """
    page_size, padding = pool_P2KZH.shape[3], pool_P2KZH.shape[4] - k_TKH.shape[2]
    kv_T2KH = jnp.stack([k_TKH, v_TKH], axis=1)
    if pool_scale_2K is not None:
        kv_T2KH = kv_T2KH.astype(jnp.float32) / pool_scale_2K[:, :, None]
    kv_T2KH = _narrowed(kv_T2KH, pool_P2KZH.dtype)
    if padding:
        kv_T2KH = jnp.pad(kv_T2KH, ((0, 0), (0, 0), (0, 0), (0, padding)))
    pages_T, offsets_T = slots_T // page_size, slots_T % page_size
    return pool_P2KZH.at[pages_T, :, :, offsets_T].set(kv_T2KH, mode="drop", unique_indices=True)


def _narrowed(x: Array, dtype: jnp.dtype) -> Array:
    """x as dtype. A bare cast of too large a number would give NaN (float8_e4m3fn) or infinity."""
    largest = float(jnp.finfo(dtype).max)
    if float(jnp.finfo(x.dtype).max) > largest:
        x = jnp.clip(x.astype(jnp.float32), -largest, largest)
    return x.astype(dtype)
