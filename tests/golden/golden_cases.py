"""The tiny models and prompts of the golden tests, the same for the maker and for the test.

Weights come from a seed (tests/random_checkpoint.py), so only what transformers answered is stored.
"""

from pathlib import Path
from typing import Any

import numpy as np

NUM_PROMPTS = 20
NUM_GENERATED = 64
LONGEST_PROMPT = 60
GOLDENS = Path(__file__).parent / "goldens"

_QWEN2: dict[str, Any] = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "rope_theta": 1e6}
_QWEN3: dict[str, Any] = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 32}
_MISTRAL: dict[str, Any] = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
_MIXTRAL: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "num_local_experts": 8,
    "intermediate_size": 48,
    "rope_theta": 1e6,
}
_QWEN3_MOE: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
}
_LLAMA3_ROPE = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0, 1.05, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6],
    "long_factor": [1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0],
}

# Overrides of random_checkpoint.DEFAULTS; None leaves a field out.
CASES: dict[str, dict[str, Any]] = {
    "llama1": {"num_key_value_heads": None, "head_dim": None, "rms_norm_eps": 1e-6},
    "llama2_gqa2": {},
    "llama3_gqa4": {
        "num_attention_heads": 8,
        "head_dim": 8,
        "rope_theta": 5e5,
        "rope_scaling": {**_LLAMA3_ROPE, "factor": 8.0, "original_max_position_embeddings": 64},
    },
    "llama32_tied": {
        "tie_word_embeddings": True,
        "rope_theta": 5e5,
        "rope_scaling": {**_LLAMA3_ROPE, "factor": 32.0, "original_max_position_embeddings": 32},
    },
    "codellama": {"num_key_value_heads": 4, "rope_theta": 1e6},
    "llama_biases": {"attention_bias": True, "mlp_bias": True},
    "smollm2": {
        "hidden_size": 72,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 8,
        "tie_word_embeddings": True,
        "rope_theta": 1e5,
    },
    "mistral_window_gqa8": {
        **_MISTRAL,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "sliding_window": 16,
    },
    "mistral_nemo": {**_MISTRAL, "head_dim": 32, "sliding_window": "null", "rope_theta": 1e6},
    "qwen2_tied_gqa7": {
        **_QWEN2,
        "hidden_size": 56,
        "num_attention_heads": 7,
        "num_key_value_heads": 1,
        "head_dim": None,
        "tie_word_embeddings": True,
    },
    "qwen2_layered_window": {
        **_QWEN2,
        "num_hidden_layers": 3,
        "use_sliding_window": True,
        "sliding_window": 12,
        "max_window_layers": 1,
    },
    "qwen25_yarn": {
        **_QWEN2,
        "max_position_embeddings": 32,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    },
    "qwen3_tied": {**_QWEN3, "tie_word_embeddings": True, "rope_theta": 1e6},
    "qwen3_rope_parameters": {
        **_QWEN3,
        "attention_bias": True,
        "rope_theta": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    },
    "llama_linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama_dynamic": {"max_position_embeddings": 48, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "llama_yarn": {
        "rope_theta": None,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "original_max_position_embeddings": 16,
            "beta_fast": 4.0,
            "beta_slow": 0.5,
            "mscale": 0.7,
            "mscale_all_dim": 1.0,
            "truncate": False,
        },
    },
    "longrope_short": {"rope_scaling": {**_LONGROPE, "original_max_position_embeddings": 128}},
    "longrope_crossing": {"rope_scaling": {**_LONGROPE, "original_max_position_embeddings": 48}},
    "mixtral": _MIXTRAL,
    "mixtral_window_top3": {**_MIXTRAL, "num_experts_per_tok": 3, "num_local_experts": 5, "sliding_window": 20},
    "qwen3_moe": {**_QWEN3_MOE, "norm_topk_prob": True, "head_dim": 32},
    "qwen3_moe_some_dense": {
        **_QWEN3_MOE,
        "num_hidden_layers": 5,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [1],
        "norm_topk_prob": False,
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 24,
    },
}


def overrides(case: str) -> dict[str, Any]:
    """Arguments of random_checkpoint.write_checkpoint for a case, its seed included."""
    return {"seed": list(CASES).index(case), **CASES[case]}


def prompts(case: str) -> list[list[int]]:
    """20 prompts of 3 to 60 random tokens; several end just before, at and after 16, 32 and 48."""
    rng = np.random.default_rng(1000 + list(CASES).index(case))
    lengths = [3, 60, 47, 48, 49, 31, 32, 33, 15, 16, 17, 4, 5, 8, 12, 24, 40, 52, 56, 59]
    return [rng.integers(5, 512, length).tolist() for length in lengths]
