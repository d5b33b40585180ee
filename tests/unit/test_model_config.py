"""config.json to ModelConfig: families, defaults, rope forms, and refusals that say what is wrong."""

from typing import Any

import pytest
from random_checkpoint import DEFAULTS

from jaxserve.core.config import ModelConfig, RopeConfig
from jaxserve.core.errors import ConfigError
from jaxserve.core.model_config import longest_context, model_config_from_hf

CACHE_ALONE = {
    "quant_method": "compressed-tensors",
    "config_groups": {},
    "kv_cache_scheme": {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True},
}


def hf(**overrides: Any) -> dict[str, Any]:
    return {key: value for key, value in (DEFAULTS | overrides).items() if value is not None}


def parse(**overrides: Any) -> ModelConfig:
    return model_config_from_hf(hf(**overrides))


def family(architecture: str, **overrides: Any) -> ModelConfig:
    return parse(architectures=[architecture], **overrides)


def test_llama_numbers() -> None:
    config = parse()
    assert (config.vocab_size, config.hidden_size, config.num_layers) == (512, 64, 2)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (4, 2, 16)
    assert config.sliding_windows == (None, None)
    assert config.rope == RopeConfig(theta=10000.0)
    assert (config.bos_token_id, config.eos_token_ids, config.dtype) == (0, (1,), "float32")


def test_a_checkpoint_whose_cache_alone_is_quantised_has_whole_weights() -> None:
    assert parse(quantization_config=CACHE_ALONE) == parse()


def test_defaults_where_the_file_is_silent() -> None:
    config = parse(num_key_value_heads=None, head_dim=None, rms_norm_eps=None, rope_theta=None, torch_dtype=None)
    assert (config.num_kv_heads, config.head_dim, config.rms_norm_eps) == (4, 16, 1e-6)
    assert (config.rope.theta, config.dtype) == (10000.0, "float32")


@pytest.mark.parametrize(
    ("architecture", "overrides", "flags"),
    [
        ("LlamaForCausalLM", {}, (False, False, False, False)),
        ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}, (True, True, True, False)),
        ("MistralForCausalLM", {"attention_bias": True}, (False, False, False, False)),
        ("Qwen2ForCausalLM", {}, (True, False, False, False)),
        ("Qwen3ForCausalLM", {}, (False, False, False, True)),
        ("Qwen3ForCausalLM", {"attention_bias": True}, (True, True, False, True)),
    ],
)
def test_biases_and_norms_of_each_family(
    architecture: str, overrides: dict[str, Any], flags: tuple[bool, bool, bool, bool]
) -> None:
    config = family(architecture, **overrides)
    assert (config.qkv_bias, config.o_bias, config.mlp_bias, config.qk_norm) == flags


def test_qwen3_head_dim_is_128_where_unsaid() -> None:
    assert family("Qwen3ForCausalLM", head_dim=None).head_dim == 128


def test_sliding_windows() -> None:
    assert family("MistralForCausalLM", sliding_window=7).sliding_windows == (7, 7)
    assert family("MistralForCausalLM").sliding_windows == (4096, 4096)
    null_window = hf(architectures=["MistralForCausalLM"]) | {"sliding_window": None}
    assert model_config_from_hf(null_window).sliding_windows == (None, None)
    assert family("LlamaForCausalLM", sliding_window=7).sliding_windows == (None, None)
    qwen: dict[str, Any] = {"architecture": "Qwen2ForCausalLM", "sliding_window": 9, "num_hidden_layers": 3}
    assert family(**qwen).sliding_windows == (None,) * 3
    assert family(**qwen, use_sliding_window=True, max_window_layers=1).sliding_windows == (None, 9, 9)
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    assert family(**qwen, use_sliding_window=True, layer_types=kinds).sliding_windows == (9, None, 9)


LLAMA3: dict[str, Any] = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize("form", ["old", "older", "new"])
def test_rope_forms_agree(form: str) -> None:
    if form == "new":
        config = parse(rope_theta=None, rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3})
    else:
        key = "rope_type" if form == "old" else "type"
        config = parse(rope_theta=5e5, rope_scaling={key: "llama3", **LLAMA3})
    assert config.rope == RopeConfig("llama3", 5e5, **LLAMA3)


def test_rope_fields_are_resolved() -> None:
    dynamic = parse(rope_scaling={"type": "dynamic", "factor": 2.0}, max_position_embeddings=100)
    assert dynamic.rope.original_max_position_embeddings == 100
    yarn = parse(rope_scaling={"type": "yarn", "original_max_position_embeddings": 64}, max_position_embeddings=256)
    assert yarn.rope.factor == 4.0
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    longrope = parse(rope_scaling={"type": "longrope", **factors}, original_max_position_embeddings=32)
    assert (longrope.rope.original_max_position_embeddings, longrope.rope.factor) == (32, 8.0)
    assert longrope.rope.long_factor == (2.0,) * 8


def test_longest_context() -> None:
    assert longest_context(parse()) == 256
    assert longest_context(parse(rope_scaling={"type": "linear", "factor": 4.0})) == 1024
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
    assert longest_context(parse(rope_scaling=yarn)) == 1024
    assert longest_context(parse(rope_scaling={"type": "llama3", **LLAMA3})) == 256


def test_eos_ids_are_gathered_and_overrides_win() -> None:
    config = model_config_from_hf(
        hf(eos_token_id=[3, 4]),
        generation_config={"eos_token_id": [4, 5]},
        overrides={"rms_norm_eps": 1e-3, "torch_dtype": "bfloat16"},
    )
    assert config.eos_token_ids == (3, 4, 5)
    assert (config.rms_norm_eps, config.dtype) == (1e-3, "bfloat16")
    assert model_config_from_hf(hf(), dtype="float16").dtype == "float16"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, ["GPT2LMHeadModel", "LlamaForCausalLM", "Qwen3ForCausalLM"]),
        ({"architectures": None}, ["no architecture", "MistralForCausalLM"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "gelu", "silu"]),
        ({"hidden_size": None}, ["lacks hidden_size"]),
        ({"hidden_size": "64"}, ["hidden_size", "'64'", "integer"]),
        ({"num_hidden_layers": True}, ["num_hidden_layers", "True"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers", "0", "1 to 1024"]),
        ({"vocab_size": -5}, ["vocab_size", "-5"]),
        ({"num_key_value_heads": 3}, ["num_attention_heads", "4", "multiple", "3"]),
        ({"head_dim": 15}, ["head_dim", "15", "even"]),
        ({"head_dim": None, "num_attention_heads": 6}, ["hidden_size", "64", "6"]),
        ({"rms_norm_eps": 0.0}, ["rms_norm_eps", "0"]),
        ({"rms_norm_eps": float("nan")}, ["rms_norm_eps", "nan"]),
        ({"rope_theta": -1.0}, ["rope_theta", "-1"]),
        ({"tie_word_embeddings": "yes"}, ["tie_word_embeddings", "true or false"]),
        ({"eos_token_id": 512}, ["eos_token_id", "512", "511"]),
        ({"rope_scaling": {"type": "mrope"}}, ["mrope", "longrope"]),
        ({"rope_scaling": "linear"}, ["rope_scaling", "object"]),
        ({"rope_scaling": {"type": "linear"}}, ["lacks factor"]),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, ["factor", "over 0"]),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3, "high_freq_factor": 0.5}}, ["high_freq_factor", "0.5"]),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": []}}, ["short_factor", "8"]),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, ["full_attention", "not supported"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor", "0.5"]),
        ({"quantization_config": {"quant_method": "gptq"}}, ["gptq"]),
        (
            {"quantization_config": {**CACHE_ALONE, "config_groups": {"group_0": {"targets": ["Linear"]}}}},
            ["compressed-tensors"],
        ),
        ({"torch_dtype": "int8"}, ["int8", "bfloat16"]),
    ],
)
def test_refusals_name_field_value_and_limit(overrides: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(**overrides)
    for word in words:
        assert word in str(caught.value)


def test_an_odd_layer_type_is_refused() -> None:
    with pytest.raises(ConfigError, match="chunked_attention"):
        family("Qwen2ForCausalLM", use_sliding_window=True, layer_types=["chunked_attention", "full_attention"])
    with pytest.raises(ConfigError, match="num_hidden_layers = 2"):
        family("Qwen2ForCausalLM", use_sliding_window=True, layer_types=["full_attention"])


def moe(architecture: str, **overrides: Any) -> ModelConfig:
    return family(architecture, **{"num_local_experts": 6, "num_experts_per_tok": 2} | overrides)


def test_mixtral_has_experts_in_every_layer() -> None:
    config = moe("MixtralForCausalLM", sliding_window=5)
    assert (config.num_experts, config.num_experts_per_tok, config.moe_intermediate_size) == (6, 2, 128)
    assert (config.norm_topk_prob, config.sparse_layers, config.sliding_windows) == (True, (True, True), (5, 5))
    silent = family("MixtralForCausalLM")
    assert (silent.num_experts, silent.num_experts_per_tok) == (8, 2)


def test_qwen3_moe_may_have_dense_layers() -> None:
    layers: dict[str, Any] = dict(num_hidden_layers=6, moe_intermediate_size=40, num_experts=9)
    config = moe("Qwen3MoeForCausalLM", **layers)
    assert (config.num_experts, config.moe_intermediate_size, config.norm_topk_prob) == (9, 40, False)
    assert config.sparse_layers == (True,) * 6 and config.qk_norm and config.sliding_windows == (None,) * 6
    some = moe("Qwen3MoeForCausalLM", **layers, decoder_sparse_step=2, mlp_only_layers=[3], norm_topk_prob=True)
    assert some.sparse_layers == (False, True, False, False, False, True) and some.norm_topk_prob
    window: dict[str, Any] = dict(use_sliding_window=True, sliding_window=7)
    assert moe("Qwen3MoeForCausalLM", **window).sliding_windows == (7, 7)


def test_without_sparse_layers_there_are_no_experts() -> None:
    for overrides in ({"mlp_only_layers": [0, 1]}, {"num_experts": 0}, {"decoder_sparse_step": 3}):
        config = moe("Qwen3MoeForCausalLM", **overrides)
        assert (config.num_experts, config.sparse_layers) == (0, ())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_experts_per_tok": 7}, "num_experts_per_tok is 7; it must be at most num_local_experts, 6"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok is 0"),
        ({"mlp_only_layers": [2]}, r"mlp_only_layers is 2; it must be 0 to 1"),
        ({"mlp_only_layers": 1}, "mlp_only_layers is 1; it must be a list"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step is 0"),
        ({"norm_topk_prob": "yes"}, "norm_topk_prob is 'yes'"),
    ],
)
def test_faults_of_experts_are_named(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        moe("Qwen3MoeForCausalLM", **overrides)
