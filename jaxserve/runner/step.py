"""The step: one pure program from packed inputs and donated state to sampled tokens."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxserve.batch.buckets import Bucket
from jaxserve.batch.step_batch import StepBatch, unpack
from jaxserve.core.config import EngineConfig, ModelConfig, PoolConfig
from jaxserve.layers.attention import PagedAttention
from jaxserve.layers.shards import Vocabulary
from jaxserve.models.llama import Llama
from jaxserve.models.weights import LoadedModel
from jaxserve.sampling.batch import SamplingBatch
from jaxserve.sampling.logprobs import token_logprobs
from jaxserve.sampling.sampler import Sampled, sample
from jaxserve.sampling.state import SamplingState, empty_state

_LOGPROB_TILE = 64  # prompt positions whose [tile, V] logits exist at once


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class PagedState:
    """Where keys and values live: one pool a layer, and the pages of each running row.

    page_table_RM: R = max_num_seqs lines of M = max_model_len / page_size page ids.
    kv_scales_L2K: what the pools' numbers are to be multiplied by; None for 1. Never changes.
    """

    pools: list[Float[Array, "P 2 K Z Hp"]]
    page_table_RM: Int[Array, "R M"]
    kv_scales_L2K: Float[Array, "L 2 K"] | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class DeviceState:
    """What lives on the device between steps, donated to each."""

    paged: PagedState
    sampling: SamplingState


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Per token of the step, what the model thought of `next_ids_T`; see `token_logprobs`."""

    logprob_T: Float[Array, " T"]
    rank_T: Int[Array, " T"]
    top_ids_TK: Int[Array, "T K"]
    top_logprobs_TK: Float[Array, "T K"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class Forward:
    """The model's half of a step: logits of each row's last token, and how the rows want to be sampled."""

    logits_BV: Float[Array, "B V"]
    sampling: SamplingBatch
    prompt: PromptLogprobs


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class StepOutput:
    """A step's result. A host copy holds None where nobody asked."""

    sampled: Sampled
    prompt: PromptLogprobs


ForwardFunction = Callable[[list[Array], PagedState, Array, Array | np.ndarray], tuple[Forward, PagedState]]
SampleFunction = Callable[[Array, SamplingBatch, SamplingState], tuple[Sampled, SamplingState]]
StepFunction = Callable[[list[Array], DeviceState, Array | np.ndarray], tuple[StepOutput, DeviceState]]


def make_state(
    config: ModelConfig,
    pool: PoolConfig,
    *,
    num_pages: int,
    page_size: int,
    num_rows: int,
    num_columns: int,
    kv_scales_L2K: Array | np.ndarray | None = None,
) -> DeviceState:
    """Zeroed pools and empty rows."""
    shape = (num_pages, 2, config.num_kv_heads, page_size, pool.head_dim)
    pools = [jnp.zeros(shape, pool.dtype) for _ in range(config.num_layers)]
    scales_L2K = None if kv_scales_L2K is None else jnp.asarray(kv_scales_L2K, jnp.float32)
    paged = PagedState(pools, jnp.zeros((num_rows, num_columns), jnp.int32), scales_L2K)
    return DeviceState(paged, empty_state(num_rows, config.vocab_size))


def initial_state(config: EngineConfig, kv_scales_L2K: Array | np.ndarray | None = None) -> DeviceState:
    """The state an engine starts with; under `jax.eval_shape` its shapes and dtypes."""
    cache, scheduler = config.cache, config.scheduler
    return make_state(
        config.model,
        config.pool,
        num_pages=cache.num_pages,
        page_size=cache.page_size,
        num_rows=scheduler.max_num_seqs,
        num_columns=-(-scheduler.max_model_len // cache.page_size),
        kv_scales_L2K=kv_scales_L2K,
    )


def make_forward(
    config: ModelConfig,
    loaded: LoadedModel,
    bucket: Bucket,
    page_size: int,
    num_logprobs: int,
    attention_implementation: str = "auto",
) -> ForwardFunction:
    """The model's half of a bucket's step.

    (weight leaves, paged state, last_tokens_R, packed vector) -> (Forward, paged state), the paged state to be
    donated. last_tokens_R: see `SamplingState`; the sampler's half writes it.
    num_logprobs: K, log probabilities returned a prompt token where a row asks for any.
    """

    def forward(
        leaves: list[Array], paged: PagedState, last_tokens_R: Array, packed: Array | np.ndarray
    ) -> tuple[Forward, PagedState]:
        batch = unpack(jnp.asarray(packed), bucket, page_size)
        token_ids_T = _known_tokens(batch.token_ids_T, last_tokens_R)
        page_table_RM = paged.page_table_RM.at[batch.update_rows_U, batch.update_columns_U].set(
            batch.update_pages_U, mode="drop"
        )
        page_table_BM = page_table_RM.at[batch.state_rows_B].get(mode="fill", fill_value=0)
        attend = PagedAttention(
            config, paged.pools, batch, page_table_BM, attention_implementation, paged.kv_scales_L2K
        )
        model = loaded.merge(leaves)
        hidden_TD = model(token_ids_T, batch.positions_T, batch.rope_lens_T, attend)
        logits_BV = model.logits(hidden_TD[batch.last_tokens_B])
        prompt = _prompt_logprobs(model, hidden_TD, batch, num_logprobs)
        after = PagedState(attend.pools, page_table_RM, paged.kv_scales_L2K)
        return Forward(logits_BV, _sampling_batch(batch), prompt), after

    return forward


def make_sample(num_logprobs: int, vocabulary: Vocabulary) -> SampleFunction:
    """The sampler's half of a step. It knows rows and vocabulary only, not the model or the tokens of the bucket."""
    return lambda logits_BV, batch, state: sample(logits_BV, batch, state, num_logprobs, vocabulary)


def join(forward: ForwardFunction, sample: SampleFunction) -> StepFunction:
    """One step from its halves: inside one program, or over two compiled ones that run back to back."""

    def step(leaves: list[Array], state: DeviceState, packed: Array | np.ndarray) -> tuple[StepOutput, DeviceState]:
        forwarded, paged = forward(leaves, state.paged, state.sampling.last_tokens_R, packed)
        sampled, sampling = sample(forwarded.logits_BV, forwarded.sampling, state.sampling)
        return StepOutput(sampled, forwarded.prompt), DeviceState(paged, sampling)

    return step


def _known_tokens(token_ids_T: Int[Array, " T"], last_tokens_R: Int[Array, " R"]) -> Int[Array, " T"]:
    """Ids as the host knows them, and for those below 0 what a row sampled in the step before."""
    return jnp.where(token_ids_T < 0, last_tokens_R.at[-1 - token_ids_T].get(mode="clip"), token_ids_T)


def _sampling_batch(batch: StepBatch) -> SamplingBatch:
    return SamplingBatch(
        rows_B=batch.state_rows_B,
        is_active_B=batch.is_active_B,
        positions_B=batch.sample_positions_B,
        seeds_B2=lax.bitcast_convert_type(batch.seeds_B2, jnp.uint32),
        temperature_B=batch.temperature_B,
        top_p_B=batch.top_p_B,
        min_p_B=batch.min_p_B,
        repetition_B=batch.repetition_B,
        presence_B=batch.presence_B,
        frequency_B=batch.frequency_B,
        top_k_B=batch.top_k_B,
        use_random=batch.use_random,
        use_filters=batch.use_filters,
        use_penalties=batch.use_penalties,
        use_bias=batch.use_bias,
        use_logprobs=batch.use_logprobs,
    )


def _prompt_logprobs(model: Llama, hidden_TD: Array, batch: StepBatch, num_logprobs: int) -> PromptLogprobs:
    """Log probabilities of each token's known successor, a tile of positions at a time; zeros where nobody asked."""
    num_tokens = hidden_TD.shape[0]
    tile = min(_LOGPROB_TILE, num_tokens)
    padding = -num_tokens % tile
    hidden_TD = jnp.pad(hidden_TD, ((0, padding), (0, 0)))
    ids_T = jnp.pad(batch.next_ids_T, (0, padding))

    def compute(start: Array) -> tuple[Array, ...]:
        part_TD, part_T = (lax.dynamic_slice_in_dim(x, start, tile) for x in (hidden_TD, ids_T))
        return token_logprobs(model.logits(part_TD), part_T, num_logprobs, model.vocabulary)

    def body(i: Array, outputs: tuple[Array, ...]) -> tuple[Array, ...]:
        parts = compute(i * tile)
        return tuple(
            lax.dynamic_update_slice_in_dim(whole, part, i * tile, axis=0)
            for whole, part in zip(outputs, parts, strict=True)
        )

    # A loop over the tiles that are filled, none where nobody asked: no condition around a loop of fixed
    # length, which XLA would keep out of the step's command buffer.
    num_tiles = jnp.where(batch.use_prompt_logprobs, (batch.query_starts[-1] + tile - 1) // tile, 0)
    shapes = jax.eval_shape(compute, num_tiles)
    zeros = tuple(jnp.zeros((num_tokens + padding, *s.shape[1:]), s.dtype) for s in shapes)
    outputs = lax.fori_loop(0, num_tiles, body, zeros)
    return PromptLogprobs(*(whole[:num_tokens] for whole in outputs))
