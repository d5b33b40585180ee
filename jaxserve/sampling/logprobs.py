"""Log probabilities of the raw model distribution (natural log, before any penalty or filter)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxserve.layers.shards import Shards, Vocabulary

_MOST_PASSES = 64  # over the logits. A longer list is sorted: on a GPU no step of that engine is then dispatched ahead
_NOTHING = (np.float32(-np.inf), np.iinfo(np.int32).max)


def token_logprobs(
    logits_TV: Float[Array, "T V"],
    next_ids_T: Int[Array, " T"],
    num_logprobs: int,
    vocabulary: Vocabulary | None = None,
) -> tuple[Float[Array, " T"], Int[Array, " T"], Int[Array, "T K"], Float[Array, "T K"]]:
    """(logprob_T, rank_T, top_ids_TK, top_logprobs_TK) of the tokens that follow, K = num_logprobs (or V if less).

    rank: 1 for the most likely; of equal tokens the lower id ranks first, as in the top list, so
    rank r <= K means top_ids[r - 1] is the token, with exactly the same log probability.
    vocabulary: whose logits these are, all of them if None.
    """
    vocabulary = vocabulary or Vocabulary(logits_TV.shape[-1])
    shards = vocabulary.shards
    logsumexp_T = _logsumexp(logits_TV, shards)
    ids_T1 = next_ids_T[:, None].astype(jnp.int32)
    chosen_T1 = _of_ids(logits_TV, ids_T1, vocabulary)
    top_values_TK, top_ids_TK = _top_of_all(logits_TV, num_logprobs, vocabulary)
    # One subtraction for both, so that equal logits cannot come out as different floats.
    values_TK1 = jnp.concatenate([chosen_T1, top_values_TK], axis=-1)
    logprobs_TK1 = values_TK1 - lax.optimization_barrier(logsumexp_T)[:, None]
    vocab_ids_1V = vocabulary.ids()[None]
    is_better_TV = (logits_TV > chosen_T1) | ((logits_TV == chosen_T1) & (vocab_ids_1V < ids_T1))
    rank_T = 1 + shards.sum(jnp.sum(is_better_TV, axis=-1, dtype=jnp.int32))
    return logprobs_TK1[:, 0], rank_T, top_ids_TK, logprobs_TK1[:, 1:]


def _logsumexp(logits_TV: Array, shards: Shards) -> Array:
    own_T = jax.nn.logsumexp(logits_TV, axis=-1)
    return own_T if shards.axis is None else jax.nn.logsumexp(shards.gather(own_T), axis=0)


def _of_ids(logits_TV: Array, ids_T1: Array, vocabulary: Vocabulary) -> Array:
    """The logit of an id of each row, whichever device has it."""
    if vocabulary.shards.axis is None:
        return jnp.take_along_axis(logits_TV, ids_T1, axis=-1, mode="clip")
    places_T1 = vocabulary.place_of(jnp.clip(ids_T1, 0, vocabulary.size - 1))
    own_T1 = jnp.take_along_axis(logits_TV, places_T1, axis=-1, mode="clip")
    # -inf from a device that has it not: a sum would make NaN of an infinite logit.
    return vocabulary.shards.largest(jnp.where(places_T1 < vocabulary.num_local, own_T1, -jnp.inf))


def _top_of_all(logits_TV: Array, num: int, vocabulary: Vocabulary) -> tuple[Array, Array]:
    """`_top` over all devices: the best of each device's best, which stand in the order of their ids."""
    if vocabulary.shards.axis is None:
        return _top(logits_TV, num)
    values_TK, places_TK = _top(logits_TV, num)
    many = (vocabulary.shards.gather(x) for x in (values_TK, places_TK + vocabulary.offset()))
    values_TC, ids_TC = (jnp.moveaxis(x, 0, 1).reshape(len(logits_TV), -1) for x in many)
    values_TK, chosen_TK = _top(values_TC, min(num, vocabulary.size))
    return values_TK, jnp.take_along_axis(ids_TC, chosen_TK, axis=-1)


def _top(logits_TV: Float[Array, "T V"], num: int) -> tuple[Float[Array, "T K"], Int[Array, "T K"]]:
    num = min(num, logits_TV.shape[-1])
    if num == 0:
        empty_T0 = logits_TV[:, :0]
        return empty_T0, empty_T0.astype(jnp.int32)
    by_passes = top_by_passes if num <= _MOST_PASSES else _top_sorted
    return lax.platform_dependent(logits_TV, cpu=partial(_top_sorted, num=num), default=partial(by_passes, num=num))


def _top_sorted(logits_TV: Array, num: int) -> tuple[Array, Array]:
    values_TK, ids_TK = lax.top_k(logits_TV, num)
    return values_TK, ids_TK.astype(jnp.int32)


def top_by_passes(logits_TV: Float[Array, "T V"], num: int) -> tuple[Float[Array, "T K"], Int[Array, "T K"]]:
    """`lax.top_k` by one pass for each of the num best. Rows of NaN give values without meaning.

    On a GPU XLA has a library sort instead, which a command buffer cannot hold: the whole step would fall
    apart into launches with the host waiting between them, also where nobody asks for log probabilities.
    """
    vocab_size = logits_TV.shape[-1]
    ids_TV = lax.broadcasted_iota(jnp.int32, logits_TV.shape, 1)

    def better(one: tuple[Array, Array], other: tuple[Array, Array]) -> tuple[Array, Array]:
        (value, i), (other_value, other_i) = one, other
        is_first = (value > other_value) | ((value == other_value) & (i < other_i))
        return jnp.where(is_first, value, other_value), jnp.where(is_first, i, other_i)

    def take_next(place: Array, found: tuple[Array, ...]) -> tuple[Array, ...]:
        value_T, id_T, values_TK, list_TK = found
        is_equal_TV = logits_TV == value_T[:, None]
        is_left_TV = (logits_TV < value_T[:, None]) | (is_equal_TV & (ids_TV > id_T[:, None]))
        values_TV = jnp.where(is_left_TV, logits_TV, -jnp.inf)
        value_T, id_T = lax.reduce((values_TV, jnp.where(is_left_TV, ids_TV, vocab_size)), _NOTHING, better, (1,))
        # Selected, not sliced into place: a slice that moves is not for a command buffer either.
        is_here_K = jnp.arange(num) == place
        values_TK = jnp.where(is_here_K, value_T[:, None], values_TK)
        return value_T, id_T, values_TK, jnp.where(is_here_K, id_T[:, None], list_TK)

    num_rows = logits_TV.shape[0]
    first = (jnp.full(num_rows, jnp.inf, logits_TV.dtype), jnp.full(num_rows, -1, jnp.int32))
    lists = (jnp.zeros((num_rows, num), logits_TV.dtype), jnp.zeros((num_rows, num), jnp.int32))
    _, _, values_TK, list_TK = lax.fori_loop(0, num, take_next, first + lists)
    return values_TK, jnp.minimum(list_TK, vocab_size - 1)
