"""`SamplingBatch`: how each row of a step is to be sampled."""

from dataclasses import dataclass

import jax
from jaxtyping import Array, Bool, Float, Int, UInt32


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SamplingBatch:
    """Per-row parameters, and batch-wide flags that let a step skip what no row asks for.

    rows_B: row of the request in `SamplingState`; out of range (max_num_seqs) for padding.
    is_active_B: the row samples a token in this step; others write nothing.
    positions_B: position in its sequence of the token being sampled.
    seeds_B2: the request's 64-bit seed as (high, low) words.
    temperature_B: 0 is greedy. top_p_B in (0, 1], top_k_B (0: all), min_p_B in [0, 1].
    repetition_B (1: none), presence_B, frequency_B (0: none): penalties.
    use_random: some active row has temperature > 0. use_filters: some such row has top_p < 1,
        top_k > 0 or min_p > 0. use_penalties, use_bias, use_logprobs: some active row has them.
        A flag that is True without need costs time only; one that is False drops the feature.
    """

    rows_B: Int[Array, " B"]
    is_active_B: Bool[Array, " B"]
    positions_B: Int[Array, " B"]
    seeds_B2: UInt32[Array, "B 2"]
    temperature_B: Float[Array, " B"]
    top_p_B: Float[Array, " B"]
    top_k_B: Int[Array, " B"]
    min_p_B: Float[Array, " B"]
    repetition_B: Float[Array, " B"]
    presence_B: Float[Array, " B"]
    frequency_B: Float[Array, " B"]
    use_random: Bool[Array, ""]
    use_filters: Bool[Array, ""]
    use_penalties: Bool[Array, ""]
    use_bias: Bool[Array, ""]
    use_logprobs: Bool[Array, ""]
