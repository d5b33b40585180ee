"""`ModelConfig` from a checkpoint's config.json and generation_config.json, checked field by field."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxserve.core.config import ModelConfig
from jaxserve.core.errors import ConfigError
from jaxserve.core.fields import read_bool, read_float, read_int, read_token_ids
from jaxserve.core.rope_config import rope_config_from_hf

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class _Family:
    """What an architecture fixes or assumes where config.json is silent, as transformers does.

    num_kv_heads, head_dim: defaults; None means num_heads and hidden_size / num_heads.
    has_attention_bias: the family honours `attention_bias` on q, k, v and o.
    window: "never", "all" layers share `sliding_window`, or "layered" by use_sliding_window; "switched" is "all" where
        use_sliding_window says so.
    has_experts: instead of a feed-forward, in some layers at least.
    """

    num_kv_heads: int | None = None
    head_dim: int | None = None
    has_attention_bias: bool = False
    has_mlp_bias: bool = False
    always_qkv_bias: bool = False
    qk_norm: bool = False
    window: str = "never"
    has_experts: bool = False


FAMILIES: Mapping[str, _Family] = {
    "LlamaForCausalLM": _Family(has_attention_bias=True, has_mlp_bias=True),
    "MistralForCausalLM": _Family(num_kv_heads=8, window="all"),
    "Qwen2ForCausalLM": _Family(num_kv_heads=32, always_qkv_bias=True, window="layered"),
    "Qwen3ForCausalLM": _Family(num_kv_heads=32, head_dim=128, has_attention_bias=True, qk_norm=True, window="layered"),
    "MixtralForCausalLM": _Family(num_kv_heads=8, window="all", has_experts=True),
    "Qwen3MoeForCausalLM": _Family(
        num_kv_heads=4, has_attention_bias=True, qk_norm=True, window="switched", has_experts=True
    ),
}


def supported_architecture(hf: Mapping[str, Any]) -> str:
    """The one architecture named by config.json; ConfigError, with the list, if it is not supported."""
    named = hf.get("architectures")
    if not isinstance(named, list | tuple) or not named:
        raise ConfigError(f"config.json names no architecture; supported: {', '.join(FAMILIES)}.")
    for architecture in named:
        if architecture in FAMILIES:
            return str(architecture)
    raise ConfigError(f"Architecture {', '.join(map(str, named))} is not supported; supported: {', '.join(FAMILIES)}.")


def model_config_from_hf(
    hf: Mapping[str, Any],
    *,
    dtype: str = "auto",
    generation_config: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> ModelConfig:
    """The numbers of the model that transformers would build from `hf`, the content of config.json.

    dtype: "auto" takes the checkpoint's own (float32 where it names none).
    generation_config: content of generation_config.json; its EOS ids are added.
    overrides: fields laid over `hf` first.
    Raises ConfigError, naming field, value and limit, for whatever cannot be served.
    """
    hf = {**hf, **(overrides or {})}
    architecture = supported_architecture(hf)
    family = FAMILIES[architecture]
    _refuse_unsupported(hf)
    hidden_size = read_int(hf, "hidden_size", None, 1, 1 << 20)
    vocab_size = read_int(hf, "vocab_size", None, 2, 1 << 24)
    num_layers = read_int(hf, "num_hidden_layers", None, 1, 1024)
    num_heads, num_kv_heads, head_dim = _heads(hf, family, hidden_size)
    max_positions = read_int(hf, "max_position_embeddings", None, 2, 1 << 30)
    attention_bias = family.has_attention_bias and read_bool(hf, "attention_bias", False)
    bos_ids = read_token_ids(hf, "bos_token_id", vocab_size)
    return ModelConfig(
        architecture=architecture,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        intermediate_size=read_int(hf, "intermediate_size", None, 1, 1 << 22),
        max_position_embeddings=max_positions,
        rms_norm_eps=read_float(hf, "rms_norm_eps", 1e-6, high=1.0),
        tie_word_embeddings=read_bool(hf, "tie_word_embeddings", False),
        qkv_bias=attention_bias or family.always_qkv_bias,
        o_bias=attention_bias,
        mlp_bias=family.has_mlp_bias and read_bool(hf, "mlp_bias", False),
        qk_norm=family.qk_norm,
        sliding_windows=_sliding_windows(hf, family, num_layers),
        rope=rope_config_from_hf(hf, head_dim, max_positions),
        dtype=_dtype(hf, dtype),
        bos_token_id=bos_ids[0] if bos_ids else None,
        eos_token_ids=_eos_token_ids(hf, generation_config or {}, vocab_size),
        **_experts(hf, architecture, num_layers),
    )


def longest_context(config: ModelConfig) -> int:
    """Tokens of prompt plus output the checkpoint is meant for, its rope scaling included."""
    rope = config.rope
    if rope.rope_type in ("linear", "dynamic"):
        return int(config.max_position_embeddings * max(rope.factor, 1.0))
    if rope.rope_type == "yarn":
        original = rope.original_max_position_embeddings or config.max_position_embeddings
        return max(config.max_position_embeddings, int(original * rope.factor))
    return config.max_position_embeddings


def _refuse_unsupported(hf: Mapping[str, Any]) -> None:
    act = hf.get("hidden_act", "silu")
    if act not in ("silu", "swish"):
        raise ConfigError(f"config.json: hidden_act is {act!r}; only silu is supported.")
    quantization = hf.get("quantization_config")
    if quantization and not _quantises_the_cache_alone(quantization):
        method = quantization.get("quant_method", "unknown") if isinstance(quantization, Mapping) else "unknown"
        raise ConfigError(f"The checkpoint is quantised ({method}), which is not supported; use the original weights.")


def _quantises_the_cache_alone(quantization: Any) -> bool:
    """Whether the weights are whole and only scales for an 8-bit KV pool were added (compressed-tensors)."""
    return isinstance(quantization, Mapping) and (
        quantization.get("quant_method") == "compressed-tensors"
        and not quantization.get("config_groups")
        and bool(quantization.get("kv_cache_scheme"))
    )


def _heads(hf: Mapping[str, Any], family: _Family, hidden_size: int) -> tuple[int, int, int]:
    """(num_heads, num_kv_heads, head_dim), consistent with each other."""
    num_heads = read_int(hf, "num_attention_heads", None, 1, 4096)
    given = "num_key_value_heads" in hf
    default = num_heads if given or family.num_kv_heads is None else family.num_kv_heads
    num_kv_heads = read_int(hf, "num_key_value_heads", default, 1, 4096)
    if num_heads % num_kv_heads:
        raise ConfigError(
            f"config.json: num_attention_heads is {num_heads}; it must be a multiple of "
            f"num_key_value_heads, {num_kv_heads}."
        )
    head_dim_default = family.head_dim if "head_dim" not in hf else None
    if head_dim_default is None and hf.get("head_dim") is None:
        if hidden_size % num_heads:
            raise ConfigError(
                f"config.json: hidden_size is {hidden_size}; without head_dim it must be a multiple of "
                f"num_attention_heads, {num_heads}."
            )
        head_dim_default = hidden_size // num_heads
    head_dim = read_int(hf, "head_dim", head_dim_default, 2, 1024)
    if head_dim % 2:
        raise ConfigError(f"config.json: head_dim is {head_dim}; rotary embedding needs an even number.")
    return num_heads, num_kv_heads, head_dim


def _sliding_windows(hf: Mapping[str, Any], family: _Family, num_layers: int) -> tuple[int | None, ...]:
    """Per layer the tokens a query may look back on, itself included; None for all of them."""
    everywhere: tuple[int | None, ...] = (None,) * num_layers
    if family.window == "never":
        return everywhere
    if "sliding_window" in hf and hf["sliding_window"] is None:
        return everywhere
    if family.window in ("layered", "switched") and not read_bool(hf, "use_sliding_window", False):
        return everywhere
    window = read_int(hf, "sliding_window", 4096, 1, 1 << 30)
    if family.window in ("all", "switched"):
        return (window,) * num_layers
    layer_types = hf.get("layer_types")
    if layer_types is None:
        first = read_int(hf, "max_window_layers", 28, 0, 1 << 20)
        return tuple(window if i >= first else None for i in range(num_layers))
    if not isinstance(layer_types, list | tuple) or len(layer_types) != num_layers:
        raise ConfigError(f"config.json: layer_types must be a list of num_hidden_layers = {num_layers} entries.")
    for kind in layer_types:
        if kind not in ("full_attention", "sliding_attention"):
            raise ConfigError(f"config.json: layer type {kind!r} is not full_attention or sliding_attention.")
    return tuple(window if kind == "sliding_attention" else None for kind in layer_types)


def _experts(hf: Mapping[str, Any], architecture: str, num_layers: int) -> dict[str, Any]:
    """The fields of ModelConfig that say which layers have experts, and what these are; none for a dense family."""
    if not FAMILIES[architecture].has_experts:
        return {}
    name = "num_experts" if "num_experts" in hf else "num_local_experts"  # one field; transformers writes either
    if architecture == "MixtralForCausalLM":
        num_experts, picked = read_int(hf, name, 8, 1, 4096), 2
        width = read_int(hf, "intermediate_size", None, 1, 1 << 22)
        normalize, sparse = True, (True,) * num_layers
    else:
        num_experts, picked = read_int(hf, name, 128, 0, 4096), 8
        width = read_int(hf, "moe_intermediate_size", 768, 1, 1 << 22)
        normalize = read_bool(hf, "norm_topk_prob", False)
        sparse = _sparse_layers(hf, num_experts, num_layers)
    if not any(sparse):
        return {}
    picked = read_int(hf, "num_experts_per_tok", picked, 1, 4096)
    if picked > num_experts:
        raise ConfigError(f"config.json: num_experts_per_tok is {picked}; it must be at most {name}, {num_experts}.")
    return {
        "num_experts": num_experts,
        "num_experts_per_tok": picked,
        "moe_intermediate_size": width,
        "norm_topk_prob": normalize,
        "sparse_layers": sparse,
    }


def _sparse_layers(hf: Mapping[str, Any], num_experts: int, num_layers: int) -> tuple[bool, ...]:
    """Qwen3-MoE: every decoder_sparse_step-th layer has experts, unless mlp_only_layers names it."""
    step = read_int(hf, "decoder_sparse_step", 1, 1, 1 << 20)
    dense = hf.get("mlp_only_layers") or []
    if not isinstance(dense, list | tuple):
        raise ConfigError(f"config.json: mlp_only_layers is {dense!r}; it must be a list of layer numbers.")
    numbers = {read_int({"mlp_only_layers": item}, "mlp_only_layers", None, 0, num_layers - 1) for item in dense}
    return tuple(num_experts > 0 and (i + 1) % step == 0 and i not in numbers for i in range(num_layers))


def _dtype(hf: Mapping[str, Any], dtype: str) -> str:
    asked = dtype
    if dtype == "auto":
        asked = str(hf.get("dtype") or hf.get("torch_dtype") or "float32").removeprefix("torch.")
    asked = {"half": "float16", "float": "float32"}.get(asked, asked)
    if asked not in DTYPES:
        origin = "The checkpoint's dtype" if dtype == "auto" else "dtype"
        raise ConfigError(f"{origin} is {asked!r}; supported: auto, {', '.join(DTYPES)}.")
    return asked


def _eos_token_ids(hf: Mapping[str, Any], generation_config: Mapping[str, Any], vocab_size: int) -> tuple[int, ...]:
    ids = read_token_ids(hf, "eos_token_id", vocab_size)
    more = read_token_ids(generation_config, "eos_token_id", vocab_size)
    return tuple(dict.fromkeys(ids + more))
