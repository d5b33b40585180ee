"""Log probabilities of the raw model distribution (natural log, before any penalty or filter)."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int


def token_logprobs(
    logits_TV: Float[Array, "T V"], next_ids_T: Int[Array, " T"], num_logprobs: int
) -> tuple[Float[Array, " T"], Int[Array, " T"], Int[Array, "T K"], Float[Array, "T K"]]:
    """(logprob_T, rank_T, top_ids_TK, top_logprobs_TK) of the tokens that follow, K = num_logprobs (or V if less).

    rank: 1 for the most likely; of equal tokens the lower id ranks first, as in the top list, so
    rank r <= K means top_ids[r - 1] is the token, with exactly the same log probability.
    """
    logsumexp_T = jax.nn.logsumexp(logits_TV, axis=-1)
    ids_T1 = next_ids_T[:, None].astype(jnp.int32)
    chosen_T1 = jnp.take_along_axis(logits_TV, ids_T1, axis=-1, mode="clip")
    top_values_TK, top_ids_TK = _top(logits_TV, num_logprobs)
    # One subtraction for both, so that equal logits cannot come out as different floats.
    values_TK1 = jnp.concatenate([chosen_T1, top_values_TK], axis=-1)
    logprobs_TK1 = values_TK1 - lax.optimization_barrier(logsumexp_T)[:, None]
    vocab_ids_1V = jnp.arange(logits_TV.shape[-1], dtype=jnp.int32)[None]
    is_better_TV = (logits_TV > chosen_T1) | ((logits_TV == chosen_T1) & (vocab_ids_1V < ids_T1))
    rank_T = 1 + jnp.sum(is_better_TV, axis=-1, dtype=jnp.int32)
    return logprobs_TK1[:, 0], rank_T, top_ids_TK, logprobs_TK1[:, 1:]


def _top(logits_TV: Float[Array, "T V"], num: int) -> tuple[Float[Array, "T K"], Int[Array, "T K"]]:
    num = min(num, logits_TV.shape[-1])
    if num == 0:
        empty_T0 = logits_TV[:, :0]
        return empty_T0, empty_T0.astype(jnp.int32)
    values_TK, ids_TK = lax.top_k(logits_TV, num)
    return values_TK, ids_TK.astype(jnp.int32)
