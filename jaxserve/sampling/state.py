"""What the sampler remembers of each running request, on the device."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SamplingState:
    """One row a running request (R = max_num_seqs rows), V = vocabulary.

    Before a request with a bias or penalties samples, `load_row` must have filled its row; one without
    needs zeros in bias_RV only. Counts grow for every request and mean something where they were loaded.

    bias_RV: added to the logits; -inf forbids a token.
    counts_RV: how often each token was generated (the prompt not included).
    prompt_mask_RV: True for tokens that occur in the prompt.
    last_tokens_R: the token sampled last, for the next step to go on with before the host has read it.
    """

    bias_RV: Float[Array, "R V"]
    counts_RV: Int[Array, "R V"]
    prompt_mask_RV: Bool[Array, "R V"]
    last_tokens_R: Int[Array, " R"]


def empty_state(num_rows: int, vocab_size: int) -> SamplingState:
    """No biases, nothing generated, empty prompts: 9 bytes a row and vocabulary entry."""
    shape = (num_rows, vocab_size)
    return SamplingState(
        bias_RV=jnp.zeros(shape, jnp.float32),
        counts_RV=jnp.zeros(shape, jnp.int32),
        prompt_mask_RV=jnp.zeros(shape, jnp.bool_),
        last_tokens_R=jnp.zeros(num_rows, jnp.int32),
    )


def load_row(
    state: SamplingState,
    row: Int[Array, ""],
    bias_V: Float[Array, " V"],
    counts_V: Int[Array, " V"],
    prompt_mask_V: Bool[Array, " V"],
) -> SamplingState:
    """Overwrite one row, its last token aside. Pure: jit it with `state` donated. Out of range it writes nothing."""
    return replace(
        state,
        bias_RV=state.bias_RV.at[row].set(bias_V, mode="drop"),
        counts_RV=state.counts_RV.at[row].set(counts_V, mode="drop"),
        prompt_mask_RV=state.prompt_mask_RV.at[row].set(prompt_mask_V, mode="drop"),
    )


def load_bias(state: SamplingState, row: Int[Array, ""], bias_V: Float[Array, " V"]) -> SamplingState:
    """Overwrite the bias of one row and leave its counts, as `RowSampling.update` asks for. Pure."""
    return replace(state, bias_RV=state.bias_RV.at[row].set(bias_V, mode="drop"))
