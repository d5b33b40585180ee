"""Causal attention over one whole sequence, without a cache: for training and for golden tests."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxserve.core.config import ModelConfig
from jaxserve.layers.basic import Attend


def dense_causal_attend(config: ModelConfig, document_T: Int[Array, "T"] | None = None) -> Attend:
    """An Attend for the tokens 0..T-1 of a single sequence, in order.

    document_T: the number of the document each token belongs to, where several are packed into the
    sequence; documents do not see each other.

    Padding at the end disturbs nothing before it. For a batch of sequences map the model with
    `jax.vmap`. Scores and softmax are float32; sliding windows hold per layer.
    """

    def attend(
        layer: int, q_TNH: Float[Array, "T N H"], k_TKH: Float[Array, "T K H"], v_TKH: Float[Array, "T K H"]
    ) -> Float[Array, "T N H"]:
        num_tokens, num_heads, head_dim = q_TNH.shape
        num_kv_heads = k_TKH.shape[1]
        q_TKGH = q_TNH.reshape(num_tokens, num_kv_heads, num_heads // num_kv_heads, head_dim)
        scores_KGTS = jnp.einsum(
            "TKGH,SKH->KGTS", q_TKGH, k_TKH, precision="highest", preferred_element_type=jnp.float32
        )
        mask_TS = _causal_mask(num_tokens, config.sliding_windows[layer] if config.sliding_windows else None)
        if document_T is not None:
            mask_TS &= document_T[:, None] == document_T[None, :]
        scores_KGTS = jnp.where(mask_TS, scores_KGTS * head_dim**-0.5, -jnp.inf)
        weights_KGTS = jax.nn.softmax(scores_KGTS, axis=-1).astype(v_TKH.dtype)
        return jnp.einsum("KGTS,SKH->TKGH", weights_KGTS, v_TKH, precision="highest").reshape(q_TNH.shape)

    return attend


def _causal_mask(num_tokens: int, window: int | None) -> Bool[Array, "T S"]:
    """True where token T sees token S: itself and earlier ones, `window` of them at most."""
    query, key = jnp.arange(num_tokens)[:, None], jnp.arange(num_tokens)[None, :]
    mask_TS = key <= query
    return mask_TS if window is None else mask_TS & (key > query - window)
