"""A mixture of experts: a router picks a few small feed-forwards for each token, and only those are computed.

`lax.ragged_dot` is not used: on CPUs and GPUs XLA makes of it a product of every token with every expert and copies the
experts' weights each time. Two forms take its place, both of fixed shapes. *Tiles*: the tokens of each expert lie side
by side in tiles, and a loop over the tiles that are filled reads an expert's matrices where they lie. *All*: every
expert for every token, unpicked ones weighed 0; on an accelerator, where a step of few tokens waits for the weights and
nearly all experts are picked by some token anyway, its two large products are the faster way.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxserve.layers.basic import Linear, linear, silu_gate
from jaxserve.layers.shards import WHOLE, Shards

MOST_TOKENS_OF_ALL = 256
"""Up to here a product of all experts is bound by reading them on a large GPU, so unpicked ones cost little."""
_MOST_ROWS_OF_A_TILE = 512
_FEWEST_ROWS_OF_A_TILE = 8


class Experts(nnx.Module):
    """E gated feed-forwards of width F, their matrices stacked: gate_up `[E, 2F, D]`, down `[E, D, F]`."""

    def __init__(self, num_experts: int, size: int, width: int, *, dtype: jnp.dtype) -> None:
        self.gate_up = nnx.Param(jnp.zeros((num_experts, 2 * width, size), dtype))
        self.down = nnx.Param(jnp.zeros((num_experts, size, width), dtype))


class MixtureOfExperts(nnx.Module):
    """The sum over each token's num_picked best experts of the router's weight times the expert's output.

    normalize: the weights of a token add up to 1. shards: where the experts here are parts of wider ones, or num_here
    of the num_experts there are, in order: hidden states are the same on all devices, so each adds up what its own
    experts have to say, and one sum over the devices makes it whole.
    """

    def __init__(
        self,
        *,
        num_experts: int,
        num_here: int,
        num_picked: int,
        size: int,
        width: int,
        normalize: bool,
        dtype: jnp.dtype,
        shards: Shards = WHOLE,
    ) -> None:
        self.router = Linear(size, num_experts, bias=False, dtype=dtype)
        self.experts = Experts(num_here, size, width, dtype=dtype)
        self.num_experts, self.num_here = num_experts, num_here
        self.num_picked, self.normalize, self.shards = num_picked, normalize, shards

    def __call__(self, x_TD: Float[Array, "T D"], is_token_T: Bool[Array, "T"]) -> Float[Array, "T D"]:
        """is_token_T: false for padding, which is sent to no expert and yields zeros."""
        logits_TE = linear(x_TD, self.router.weight[...], jnp.dtype(jnp.float32))
        weights_TE, picks_TE = route(logits_TE, self.num_picked, self.normalize)
        picks_TE &= is_token_T[:, None]
        weights_TE = jnp.where(picks_TE, weights_TE, 0)
        if self.num_here < self.num_experts:
            first = self.shards.index() * self.num_here
            weights_TE, picks_TE = (
                lax.dynamic_slice_in_dim(x_TE, first, self.num_here, axis=1) for x_TE in (weights_TE, picks_TE)
            )
        num_tokens, most_picks = x_TD.shape[0], min(self.num_picked, self.num_here)
        rows = rows_of_a_tile(num_tokens, self.num_experts, self.num_picked)
        gate_up_EFD, down_EDF = self.experts.gate_up[...], self.experts.down[...]

        def tiles(x_TD: Array, weights_TE: Array, picks_TE: Array) -> Array:
            return experts_by_tiles(x_TD, weights_TE, picks_TE, gate_up_EFD, down_EDF, rows, most_picks)

        def every(x_TD: Array, weights_TE: Array, picks_TE: Array) -> Array:
            return all_experts(x_TD, weights_TE, gate_up_EFD, down_EDF)

        default = every if prefers_all(num_tokens, self.num_experts, self.num_picked) else tiles
        y_TD = lax.platform_dependent(x_TD, weights_TE, picks_TE, cpu=tiles, default=default)
        return self.shards.sum(y_TD.astype(x_TD.dtype))


def route(
    logits_TE: Float[Array, "T E"], num_picked: int, normalize: bool
) -> tuple[Float[Array, "T E"], Bool[Array, "T E"]]:
    """(weight of each expert, whether the token picks it): the num_picked most probable, of equals the first.

    A place is counted, not sorted for: on a GPU a sort would leave the step's command buffer. A token always has
    exactly num_picked experts, one whose logits are NaN too (its own result is NaN, others keep their room).
    """
    probs_TE = jax.nn.softmax(logits_TE.astype(jnp.float32), axis=-1)
    keys_TE = jnp.where(jnp.isnan(probs_TE), -1.0, probs_TE)
    mine_TE1, others_T1E = keys_TE[:, :, None], keys_TE[:, None, :]
    experts_E = jnp.arange(keys_TE.shape[1])
    is_before_EE = experts_E[None, :] < experts_E[:, None]
    places_TE = jnp.sum((others_T1E > mine_TE1) | ((others_T1E == mine_TE1) & is_before_EE), axis=-1)
    picks_TE = places_TE < num_picked
    weights_TE = jnp.where(picks_TE, probs_TE, 0)
    if normalize:
        weights_TE = weights_TE / jnp.sum(weights_TE, axis=-1, keepdims=True)
    return weights_TE, picks_TE


def prefers_all(num_tokens: int, num_experts: int, num_picked: int) -> bool:
    """Whether an accelerator computes all experts: few tokens, that still pick as many experts as there are."""
    return num_experts <= num_tokens * num_picked and num_tokens <= MOST_TOKENS_OF_ALL


def all_experts(
    x_TD: Float[Array, "T D"],
    weights_TE: Float[Array, "T E"],
    gate_up_EFD: Float[Array, "E F2 D"],
    down_EDF: Float[Array, "E D F"],
) -> Float[Array, "T D"]:
    """Every expert for every token, weighed: float32."""
    num_experts, num_rows, size = gate_up_EFD.shape
    gate_up_TEF = linear(x_TD, gate_up_EFD.reshape(-1, size)).reshape(-1, num_experts, num_rows)
    y_ETD = jax.vmap(linear, in_axes=(1, 0))(silu_gate(gate_up_TEF), down_EDF)
    return jnp.sum(y_ETD.astype(jnp.float32) * weights_TE.T[:, :, None], axis=0)


def experts_by_tiles(
    x_TD: Float[Array, "T D"],
    weights_TE: Float[Array, "T E"],
    picks_TE: Bool[Array, "T E"],
    gate_up_EFD: Float[Array, "E F2 D"],
    down_EDF: Float[Array, "E D F"],
    rows: int,
    most_picks: int,
) -> Float[Array, "T D"]:
    """The picked experts alone, a tile of `rows` tokens of one expert at a time: float32.

    most_picks: of a token. A token's experts are added up in order of their number, whoever else is
    in the step.
    """
    tokens_IR, experts_I, num_filled = tiles_of(picks_TE, rows, picks_TE.shape[0] * most_picks)

    def add_tile(i: Array, sums_TD: Array) -> Array:
        tokens_R, expert = tokens_IR[i], experts_I[i]
        x_RD = x_TD.at[tokens_R].get(mode="fill", fill_value=0)
        y_RD = linear(silu_gate(linear(x_RD, gate_up_EFD[expert])), down_EDF[expert])
        weights_R = weights_TE.at[tokens_R, expert].get(mode="fill", fill_value=0)
        y_RD = y_RD.astype(jnp.float32) * weights_R[:, None]
        return sums_TD.at[tokens_R].add(y_RD, mode="drop", unique_indices=True)

    return lax.fori_loop(0, num_filled, add_tile, jnp.zeros(x_TD.shape, jnp.float32))


def rows_of_a_tile(num_tokens: int, num_experts: int, num_picked: int) -> int:
    """An expert's tokens where they are spread evenly, as a power of two in bounds."""
    even = 1 << (max(1, num_tokens * num_picked // num_experts) - 1).bit_length()
    return min(max(even, min(num_tokens, _FEWEST_ROWS_OF_A_TILE)), _MOST_ROWS_OF_A_TILE)


def tiles_of(
    picks_TE: Bool[Array, "T E"], rows: int, most_picks: int
) -> tuple[Int[Array, "I R"], Int[Array, "I"], Int[Array, ""]]:
    """(tokens of each tile, its expert, tiles that are filled): the tokens of each expert in order, tile after tile.

    I is what most_picks picks can need. Places without a token hold numbers from T on, each another.
    """
    num_tokens, num_experts = picks_TE.shape
    num_tiles = most_picks // rows + min(num_experts, most_picks)
    ranks_TE = jnp.cumsum(picks_TE, axis=0, dtype=jnp.int32)
    tiles_E = (ranks_TE[-1] + (rows - 1)) // rows
    stops_E = jnp.cumsum(tiles_E)
    slots_TE = (stops_E - tiles_E) * rows + ranks_TE - 1
    slots_TE = jnp.where(picks_TE, slots_TE, num_tiles * rows)
    tokens_TE = jnp.broadcast_to(jnp.arange(num_tokens, dtype=jnp.int32)[:, None], picks_TE.shape)
    empty_S = num_tokens + jnp.arange(num_tiles * rows, dtype=jnp.int32)
    tokens_S = empty_S.at[slots_TE].set(tokens_TE, mode="drop")
    experts_I = jnp.sum(stops_E[None, :] <= jnp.arange(num_tiles)[:, None], axis=1, dtype=jnp.int32)
    return tokens_S.reshape(num_tiles, rows), experts_I, stops_E[-1]
