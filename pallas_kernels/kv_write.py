"""Writing new keys and values into a layer's paged pool."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def write_kv(
    pool_P2KZH: Float[Array, "P 2 K Z H"],
    k_TKH: Float[Array, "T K H"],
    v_TKH: Float[Array, "T K H"],
    slots_T: Int[Array, " T"],
) -> Float[Array, "P 2 K Z H"]:
    """Put each token's key and value at its slot (`page_id * Z + offset`) and return the pool.

    A slot of `P * Z` or more is padding and is dropped; a negative slot is a bug of the caller (JAX
    would write from the end). In a jitted step that donates the pool XLA does this in place.
    """
    page_size = pool_P2KZH.shape[3]
    kv_T2KH = jnp.stack([k_TKH, v_TKH], axis=1).astype(pool_P2KZH.dtype)
    pages_T, offsets_T = slots_T // page_size, slots_T % page_size
    return pool_P2KZH.at[pages_T, :, :, offsets_T].set(kv_T2KH, mode="drop", unique_indices=True)
