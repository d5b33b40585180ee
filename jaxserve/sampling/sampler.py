"""From logits to the next token of every row."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.random import threefry_2x32
from jaxtyping import Array, Float, Int

from jaxserve.layers.shards import Vocabulary
from jaxserve.sampling.batch import SamplingBatch
from jaxserve.sampling.filters import kept_tokens
from jaxserve.sampling.logprobs import token_logprobs
from jaxserve.sampling.state import SamplingState


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sampled:
    """What one step sampled. Inactive rows hold values without meaning.

    token_ids_B: the next token of each row; -1 where no token can be meant: the row's logits held a NaN or
        +inf, or its biases forbid every token. The request must end in an error.
    logprob_B, rank_B, top_ids_BK, top_logprobs_BK: of the raw distribution, see `token_logprobs`;
        zeros where `use_logprobs` is False.
    """

    token_ids_B: Int[Array, " B"]
    logprob_B: Float[Array, " B"]
    rank_B: Int[Array, " B"]
    top_ids_BK: Int[Array, "B K"]
    top_logprobs_BK: Float[Array, "B K"]


def sample(
    logits_BV: Float[Array, "B V"],
    batch: SamplingBatch,
    state: SamplingState,
    num_logprobs: int,
    vocabulary: Vocabulary | None = None,
) -> tuple[Sampled, SamplingState]:
    """The next token of every row, and the state with those tokens counted and remembered.

    In order: log probabilities of the raw logits; bias; penalties; greedy where the temperature is
    0, else temperature, min-p, top-k, top-p and a random choice that depends on (seed, position)
    alone. Work that no row asks for is skipped on the device, so one program serves all parameters.
    num_logprobs: K of the top list (static). vocabulary: whose logits these are, all of them if None. A device with a
        slice has the state's slice too; what devices tell each other is a number or a few a row, never logits.
    """
    vocabulary = vocabulary or Vocabulary(logits_BV.shape[-1])
    token_ids_B, best_B = _best(logits_BV, batch, state, vocabulary)

    def choose(greedy_B: Array, logits_BV: Array, batch: SamplingBatch, state: SamplingState) -> Array:
        return _choose(greedy_B, logits_BV, batch, state, vocabulary)

    token_ids_B = lax.cond(batch.use_random, choose, _keep_greedy, token_ids_B, logits_BV, batch, state)

    def measure(logits_BV: Array, ids_B: Array) -> tuple[Array, ...]:
        return token_logprobs(logits_BV, ids_B, num_logprobs, vocabulary)

    def skip(logits_BV: Array, ids_B: Array) -> tuple[Array, ...]:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(measure, logits_BV, ids_B))

    logprob_B, rank_B, top_ids_BK, top_logprobs_BK = lax.cond(batch.use_logprobs, measure, skip, logits_BV, token_ids_B)
    is_finite_B = jnp.isfinite(vocabulary.shards.largest(jnp.max(logits_BV, axis=-1))) & jnp.isfinite(best_B)
    known_B = jnp.where(is_finite_B, token_ids_B, -1)
    sampled = Sampled(known_B, logprob_B, rank_B, top_ids_BK, top_logprobs_BK)
    # Not under a cond: handing the counts through one would copy them.
    once_B = batch.is_active_B.astype(jnp.int32)
    counts_RV = state.counts_RV.at[batch.rows_B, vocabulary.place_of(token_ids_B)].add(once_B, mode="drop")
    active_rows_B = jnp.where(batch.is_active_B, batch.rows_B, state.last_tokens_R.shape[0])
    last_tokens_R = state.last_tokens_R.at[active_rows_B].set(token_ids_B, mode="drop")
    return sampled, replace(state, counts_RV=counts_RV, last_tokens_R=last_tokens_R)


def _best(logits_BV: Array, batch: SamplingBatch, state: SamplingState, vocabulary: Vocabulary) -> tuple[Array, Array]:
    """The best token of the processed logits and its value. Processed inside a branch, and again where rows
    choose at random: logits that leave a branch unchanged would be copied, in every step."""

    def best(logits_BV: Array) -> tuple[Array, Array]:
        return _argmax(logits_BV, vocabulary)

    def best_processed(logits_BV: Array) -> tuple[Array, Array]:
        return best(process(logits_BV, batch, state))

    return lax.cond(batch.use_bias | batch.use_penalties, best_processed, best, logits_BV)


def _argmax(scores_BV: Array, vocabulary: Vocabulary) -> tuple[Array, Array]:
    """Id and score of each row's best entry; of equal ones the lowest id, NaN above all, over all devices."""
    places_B, scores_B = jnp.argmax(scores_BV, axis=-1).astype(jnp.int32), jnp.max(scores_BV, axis=-1)
    if vocabulary.shards.axis is None:
        return places_B, scores_B
    every_SB, ids_SB = vocabulary.shards.gather(scores_B), vocabulary.shards.gather(places_B + vocabulary.offset())
    best_1B = jnp.argmax(every_SB, axis=0)[None]
    return jnp.take_along_axis(ids_SB, best_1B, axis=0)[0], jnp.max(every_SB, axis=0)


def process(logits_BV: Float[Array, "B V"], batch: SamplingBatch, state: SamplingState) -> Float[Array, "B V"]:
    """Logits with biases and penalties: what greedy rows choose the best of."""
    logits_BV = lax.cond(batch.use_bias, _add_bias, _same, logits_BV, batch, state)
    return lax.cond(batch.use_penalties, _penalise, _same, logits_BV, batch, state)


def narrow(
    processed_BV: Float[Array, "B V"], batch: SamplingBatch, vocabulary: Vocabulary | None = None
) -> Float[Array, "B V"]:
    """What random rows choose from: logits over temperature, maximum 0, -inf for what the filters drop.

    Rows are shifted to their maximum before the division, so that nothing overflows.
    """
    vocabulary = vocabulary or Vocabulary(processed_BV.shape[-1])
    best_B1 = vocabulary.shards.largest(jnp.max(processed_BV, axis=-1, keepdims=True))
    temperature_B1 = jnp.where(batch.temperature_B > 0, batch.temperature_B, 1.0)[:, None]
    scaled_BV = (processed_BV - jnp.where(jnp.isfinite(best_B1), best_B1, 0.0)) / temperature_B1

    def filtered(scaled_BV: Array, batch: SamplingBatch) -> Array:
        is_kept_BV = kept_tokens(scaled_BV, batch.top_k_B, batch.top_p_B, batch.min_p_B, shards=vocabulary.shards)
        return jnp.where(is_kept_BV, scaled_BV, -jnp.inf)

    return lax.cond(batch.use_filters, filtered, lambda scaled_BV, _: scaled_BV, scaled_BV, batch)


def _same(logits_BV: Array, batch: SamplingBatch, state: SamplingState) -> Array:
    return logits_BV


def _add_bias(logits_BV: Array, batch: SamplingBatch, state: SamplingState) -> Array:
    return logits_BV + state.bias_RV.at[batch.rows_B].get(mode="clip")


def _penalise(logits_BV: Array, batch: SamplingBatch, state: SamplingState) -> Array:
    """Repetition divides (or multiplies) what occurred in prompt or output; the others subtract for output only."""
    counts_BV = state.counts_RV.at[batch.rows_B].get(mode="clip")
    in_prompt_BV = state.prompt_mask_RV.at[batch.rows_B].get(mode="clip")
    repetition_B1 = batch.repetition_B[:, None]
    weakened_BV = jnp.where(logits_BV > 0, logits_BV / repetition_B1, logits_BV * repetition_B1)
    logits_BV = jnp.where(in_prompt_BV | (counts_BV > 0), weakened_BV, logits_BV)
    logits_BV -= batch.frequency_B[:, None] * counts_BV.astype(jnp.float32)
    return logits_BV - batch.presence_B[:, None] * (counts_BV > 0).astype(jnp.float32)


def _keep_greedy(greedy_B: Array, logits_BV: Array, batch: SamplingBatch, state: SamplingState) -> Array:
    return greedy_B


def _choose(
    greedy_B: Array, logits_BV: Array, batch: SamplingBatch, state: SamplingState, vocabulary: Vocabulary
) -> Array:
    """Random tokens for the rows with a temperature, the greedy ones for the others."""
    noise_BV = gumbel_noise(batch.seeds_B2, batch.positions_B, vocabulary)
    # The barrier keeps XLA from computing the noise inside the argmax, several times over.
    noisy_BV = lax.optimization_barrier(narrow(process(logits_BV, batch, state), batch, vocabulary) + noise_BV)
    random_B, _ = _argmax(noisy_BV, vocabulary)
    return jnp.where(batch.temperature_B > 0, random_B, greedy_B)


def gumbel_noise(seeds_B2: Array, positions_B: Array, vocabulary: Vocabulary) -> Float[Array, "B V"]:
    """Noise whose argmax with log weights is a sample: a function of each row's seed and position, and of each id."""

    def draw(seed_2: Array, position: Array) -> Array:
        key = jax.random.fold_in(jax.random.wrap_key_data(seed_2, impl="threefry2x32"), position)
        return _random_words(jax.random.key_data(key), vocabulary)

    # The uniform number is 1 - v with a small v well resolved: the largest noise decides.
    v_BV = jax.vmap(draw)(seeds_B2, positions_B).astype(jnp.float32) * 2.0**-32 + 2.0**-33
    return -jnp.log(-jnp.log1p(-jnp.minimum(v_BV, 1 - 2.0**-24)))


def _random_words(key_2: Array, vocabulary: Vocabulary) -> Array:
    """A number of 32 bits for each entry of a device's slice, the same whatever the slices.

    The generator makes two words at once: of the whole vocabulary it pairs the first half with the second, so an
    entry's word takes its partner too. No slice hashes more than the whole vocabulary would on one device.
    """
    if vocabulary.shards.axis is None:
        return threefry_2x32(key_2, vocabulary.ids().astype(jnp.uint32))
    half, ids = -(-vocabulary.size // 2), vocabulary.ids()
    first = jnp.where(ids < half, ids, ids - half)
    second = jnp.where(first + half < vocabulary.size, first + half, 0)  # an odd last one has 0 as its partner
    words = threefry_2x32(key_2, jnp.concatenate([first, second]).astype(jnp.uint32))
    return jnp.where(ids < half, words[: ids.size], words[ids.size :])
