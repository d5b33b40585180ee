"""Llama's block with experts in place of the feed-forward: Mixtral, and Qwen3-MoE, where some layers may stay dense."""

import jax.numpy as jnp
from flax import nnx

from jaxserve.core.config import ModelConfig
from jaxserve.layers.moe import MixtureOfExperts
from jaxserve.layers.shards import Shards
from jaxserve.models.llama import CheckpointLayout, Llama

# (the block's name, then those of an expert's gate, up and down) as each family's checkpoints spell them
_NAMES = {
    "MixtralForCausalLM": ("block_sparse_moe", "w1", "w3", "w2"),
    "Qwen3MoeForCausalLM": ("mlp", "gate_proj", "up_proj", "down_proj"),
}
_LOGICAL_AXES = {
    "router.weight": ("all_experts", "embed"),
    "experts.gate_up": ("all_experts", "ff", "embed"),
    "experts.down": ("all_experts", "embed", "ff"),
}
_OF_WHOLE_EXPERTS = _LOGICAL_AXES | {
    "experts.gate_up": ("experts", "expert_ff", "embed"),
    "experts.down": ("experts", "embed", "expert_ff"),
}


class Mixtral(Llama):
    """A `Llama` whose sparse layers send each token to a few of their experts."""

    @staticmethod
    def make_feed_forward(config: ModelConfig, layer: int, shards: Shards) -> nnx.Module:
        if not is_sparse(config, layer):
            return Llama.make_feed_forward(config, layer, shards)
        return MixtureOfExperts(
            num_experts=config.num_experts * config.num_expert_shards,
            num_here=config.num_experts,
            num_picked=config.num_experts_per_tok,
            size=config.hidden_size,
            width=config.moe_intermediate_size,
            normalize=config.norm_topk_prob,
            dtype=jnp.dtype(config.dtype),
            shards=shards,
        )

    @staticmethod
    def logical_axes(parameter: str, config: ModelConfig) -> tuple[str, ...]:
        axes = _OF_WHOLE_EXPERTS if config.expert_parallel else _LOGICAL_AXES
        return axes.get(".".join(parameter.split(".")[-2:])) or Llama.logical_axes(parameter, config)

    @staticmethod
    def checkpoint_layout(config: ModelConfig) -> CheckpointLayout:
        """An expert's gate rows come before its up rows, one expert after another; a share's experts are the first."""
        d, f, experts = config.hidden_size, config.moe_intermediate_size, range(config.num_experts)
        block, gate, up, down = _NAMES[config.architecture]
        layout = Llama.checkpoint_layout(config)
        for i in range(config.num_layers):
            if not is_sparse(config, i):
                continue
            ours, theirs = f"layers.{i}.feed_forward.", f"model.layers.{i}.{block}."
            for name in ("gate_up", "down"):
                del layout[f"{ours}{name}.weight"]
            layout[ours + "router.weight"] = ((theirs + "gate.weight", config.num_experts * config.num_expert_shards),)
            layout[ours + "experts.gate_up"] = tuple(
                (f"{theirs}experts.{e}.{part}.weight", f) for e in experts for part in (gate, up)
            )
            layout[ours + "experts.down"] = tuple((f"{theirs}experts.{e}.{down}.weight", d) for e in experts)
        return layout


def is_sparse(config: ModelConfig, layer: int) -> bool:
    """Whether a layer has experts."""
    return bool(config.sparse_layers) and config.sparse_layers[layer]
