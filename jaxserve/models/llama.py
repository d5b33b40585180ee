"""The dense Llama family: Llama 1 to 3.3, CodeLlama, SmolLM2, Mistral, Qwen2, Qwen2.5, Qwen3.

One block: RMS norm, grouped-query attention with rotary positions, RMS norm, gated feed-forward.
The families differ only by what `ModelConfig` says: biases, q/k norm, tied embeddings, head size,
sliding windows, rope scaling. Sequences are flat: T tokens of any mix of requests; which tokens
see which is the business of `attend`.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxserve.core.config import ModelConfig
from jaxserve.layers.basic import Attend, Embedding, Linear, RMSNorm, linear, silu_gate
from jaxserve.layers.rotary import apply_rope, rope_cos_sin
from jaxserve.layers.shards import WHOLE, Shards, Vocabulary
from jaxserve.models.shard import shard_of

type CheckpointLayout = dict[str, tuple[tuple[str, int], ...]]
"""Path of each parameter -> (tensor name, rows) of the checkpoint tensors that are stacked into it."""


_LOGICAL_AXES = {
    "embed": ("vocab", "embed"),
    "head": ("vocab", "embed"),
    "qkv": ("heads", "embed"),
    "o": ("embed", "heads"),
    "gate_up": ("ff", "embed"),
    "down": ("embed", "ff"),
    "q_norm": ("head_dim",),
    "k_norm": ("head_dim",),
}


class Attention(nnx.Module):
    """Grouped-query attention; q, k and v come from one fused projection of (N + 2K) * H rows."""

    def __init__(self, config: ModelConfig, layer: int, shards: Shards) -> None:
        dtype = jnp.dtype(config.dtype)
        self.layer = layer
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        num_qkv_rows = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
        self.qkv = Linear(config.hidden_size, num_qkv_rows, bias=config.qkv_bias, dtype=dtype)
        num_o_columns = config.num_heads * config.head_dim
        self.o = Linear(num_o_columns, config.hidden_size, bias=config.o_bias, dtype=dtype, sums_over=shards)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps, dtype=dtype) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps, dtype=dtype) if config.qk_norm else None

    def __call__(
        self,
        x_TD: Float[Array, "T D"],
        cos_Th: Float[Array, "T half"],
        sin_Th: Float[Array, "T half"],
        attend: Attend,
    ) -> Float[Array, "T D"]:
        n, k = self.num_heads, self.num_kv_heads
        heads_TCH = self.qkv(x_TD).reshape(x_TD.shape[0], n + 2 * k, self.head_dim)
        q_TNH, k_TKH, v_TKH = jnp.split(heads_TCH, (n, n + k), axis=1)
        if self.q_norm is not None and self.k_norm is not None:
            q_TNH, k_TKH = self.q_norm(q_TNH), self.k_norm(k_TKH)
        q_TNH, k_TKH = apply_rope(q_TNH, cos_Th, sin_Th), apply_rope(k_TKH, cos_Th, sin_Th)
        o_TNH = attend(self.layer, q_TNH, k_TKH, v_TKH)
        return self.o(o_TNH.reshape(x_TD.shape[0], -1))


class FeedForward(nnx.Module):
    """down(silu(gate(x)) * up(x)); gate and up come from one fused projection of 2F rows."""

    def __init__(self, config: ModelConfig, shards: Shards) -> None:
        dtype, d, f = jnp.dtype(config.dtype), config.hidden_size, config.intermediate_size
        self.gate_up = Linear(d, 2 * f, bias=config.mlp_bias, dtype=dtype)
        self.down = Linear(f, d, bias=config.mlp_bias, dtype=dtype, sums_over=shards)

    def __call__(self, x_TD: Float[Array, "T D"], is_token_T: Bool[Array, "T"]) -> Float[Array, "T D"]:
        """is_token_T: not needed here; a mixture of experts, which may stand in this place, sends padding nowhere."""
        return self.down(silu_gate(self.gate_up(x_TD)))


class DecoderLayer(nnx.Module):
    """Attention and feed-forward, each beside a residual. feed_forward: (x_TD, is_token_T) -> y_TD."""

    def __init__(self, config: ModelConfig, layer: int, shards: Shards, feed_forward: Any) -> None:
        dtype = jnp.dtype(config.dtype)
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype=dtype)
        self.attention = Attention(config, layer, shards)
        self.feed_forward_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype=dtype)
        self.feed_forward = feed_forward

    def __call__(
        self,
        x_TD: Float[Array, "T D"],
        cos_Th: Float[Array, "T half"],
        sin_Th: Float[Array, "T half"],
        attend: Attend,
        is_token_T: Bool[Array, "T"],
    ) -> Float[Array, "T D"]:
        x_TD = x_TD + self.attention(self.attention_norm(x_TD), cos_Th, sin_Th, attend)
        return x_TD + self.feed_forward(self.feed_forward_norm(x_TD), is_token_T)


class Llama(nnx.Module):
    """Token ids in, hidden states out; `logits` is apart because only sampled rows need it.

    With shards it is one device's share of the model of `config`: its heads, its part of the feed-forward, its slice of
    the vocabulary. Two sums over the devices a layer and one for the embedding make hidden states whole.
    """

    def __init__(self, config: ModelConfig, shards: Shards = WHOLE) -> None:
        dtype = jnp.dtype(config.dtype)
        self.vocabulary = Vocabulary(config.vocab_size, shards)
        config = shard_of(config, shards.size)
        self.config = config
        self.embed = Embedding(self.vocabulary, config.hidden_size, dtype=dtype)
        self.layers = nnx.List(
            [
                DecoderLayer(config, layer, shards, self.make_feed_forward(config, layer, shards))
                for layer in range(config.num_layers)
            ]
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype=dtype)
        tied = config.tie_word_embeddings
        self.head = None if tied else Linear(config.hidden_size, config.vocab_size, bias=False, dtype=dtype)

    @staticmethod
    def make_feed_forward(config: ModelConfig, layer: int, shards: Shards) -> nnx.Module:
        """What stands after a layer's attention."""
        return FeedForward(config, shards)

    def __call__(
        self,
        token_ids_T: Int[Array, "T"],
        positions_T: Int[Array, "T"],
        rope_lens_T: Int[Array, "T"],
        attend: Attend,
    ) -> Float[Array, "T D"]:
        """Hidden states after the final norm.

        positions_T: each token's index in its own sequence; rope_lens_T: max(prompt tokens,
        position + 1) of its request, which dynamic and longrope need, 0 for padding.
        """
        cos_Th, sin_Th = rope_cos_sin(self.config.rope, self.config.head_dim, positions_T, rope_lens_T)
        x_TD = self.embed(token_ids_T).astype(self.config.dtype)
        for layer in self.layers:
            x_TD = layer(x_TD, cos_Th, sin_Th, attend, rope_lens_T > 0)
        return self.norm(x_TD)

    def logits(self, hidden_BD: Float[Array, "B D"]) -> Float[Array, "B V"]:
        """Scores of every vocabulary entry (of this device's slice), float32 whatever the model's dtype."""
        head = self.embed if self.head is None else self.head
        logits_BV = linear(hidden_BD, head.weight[...], jnp.dtype(jnp.float32))
        if not self.vocabulary.is_padded:
            return logits_BV
        return jnp.where(self.vocabulary.ids() < self.vocabulary.size, logits_BV, -jnp.inf)

    @staticmethod
    def logical_axes(parameter: str, config: ModelConfig) -> tuple[str, ...]:
        """Names of a parameter's dimensions: what of it may be cut over devices. parameter: its path."""
        module, _, kind = parameter.rpartition(".")
        name = module.rpartition(".")[2]
        axes = _LOGICAL_AXES.get(name, ("embed",))
        return axes if kind == "weight" else axes[:1]

    @staticmethod
    def checkpoint_layout(config: ModelConfig) -> CheckpointLayout:
        """Where each parameter's rows are in a Hugging Face checkpoint, fused parts in order."""
        h, f = config.head_dim, config.intermediate_size
        q, kv, d = config.num_heads * h, config.num_kv_heads * h, config.hidden_size
        layout: CheckpointLayout = {
            "embed.weight": (("model.embed_tokens.weight", config.vocab_size),),
            "norm.weight": (("model.norm.weight", d),),
        }
        if not config.tie_word_embeddings:
            layout["head.weight"] = (("lm_head.weight", config.vocab_size),)
        for i in range(config.num_layers):
            ours, theirs = f"layers.{i}.", f"model.layers.{i}."
            layout[ours + "attention_norm.weight"] = ((theirs + "input_layernorm.weight", d),)
            layout[ours + "feed_forward_norm.weight"] = ((theirs + "post_attention_layernorm.weight", d),)
            if config.qk_norm:
                layout[ours + "attention.q_norm.weight"] = ((theirs + "self_attn.q_norm.weight", h),)
                layout[ours + "attention.k_norm.weight"] = ((theirs + "self_attn.k_norm.weight", h),)
            for name, has_bias, parts in (
                ("attention.qkv", config.qkv_bias, (("q_proj", q), ("k_proj", kv), ("v_proj", kv))),
                ("attention.o", config.o_bias, (("o_proj", d),)),
                ("feed_forward.gate_up", config.mlp_bias, (("gate_proj", f), ("up_proj", f))),
                ("feed_forward.down", config.mlp_bias, (("down_proj", d),)),
            ):
                block = theirs + ("self_attn." if name.startswith("attention") else "mlp.")
                for kind in ("weight", "bias") if has_bias else ("weight",):
                    layout[f"{ours}{name}.{kind}"] = tuple((f"{block}{part}.{kind}", rows) for part, rows in parts)
        return layout
