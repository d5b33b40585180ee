"""Tiny random Hugging Face checkpoints, made from a seed with numpy alone.

Shared by the tests and by tests/golden/make_goldens.py, which runs in an environment of its own
with torch: this module imports neither torch nor jax nor jaxserve. Weights are drawn as uniform
numbers straight from the generator's bits, so every machine makes the same file.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

DEFAULTS: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "float32",
}
SPECIAL_TOKENS = ["<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
_DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that transformers would save for this config."""
    d, v = config["hidden_size"], config["vocab_size"]
    n = config["num_attention_heads"]
    k = config.get("num_key_value_heads") or n
    h = config.get("head_dim") or d // n
    family = config["model_type"]
    qkv_bias = config.get("attention_bias", False) or family == "qwen2"
    o_bias = config.get("attention_bias", False) and family != "qwen2"
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (v, d), "model.norm.weight": (d,)}
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}."
        shapes |= {p + "input_layernorm.weight": (d,), p + "post_attention_layernorm.weight": (d,)}
        for name, rows, cols, bias in (
            ("self_attn.q_proj", n * h, d, qkv_bias),
            ("self_attn.k_proj", k * h, d, qkv_bias),
            ("self_attn.v_proj", k * h, d, qkv_bias),
            ("self_attn.o_proj", d, n * h, o_bias),
            *_feed_forward_shapes(config, i),
        ):
            shapes[f"{p}{name}.weight"] = (rows, cols)
            if bias:
                shapes[f"{p}{name}.bias"] = (rows,)
        if family in ("qwen3", "qwen3_moe"):
            shapes |= {p + "self_attn.q_norm.weight": (h,), p + "self_attn.k_norm.weight": (h,)}
    if not config.get("tie_word_embeddings", False):
        shapes["lm_head.weight"] = (v, d)
    return shapes


def _feed_forward_shapes(config: Mapping[str, Any], layer: int) -> list[tuple[str, int, int, bool]]:
    """(name, rows, columns, whether it has a bias) of a layer's matrices after attention."""
    d, f, bias = config["hidden_size"], config["intermediate_size"], config.get("mlp_bias", False)
    block, names = "mlp", ("gate_proj", "up_proj", "down_proj")
    num_experts = config.get("num_local_experts" if config["model_type"] == "mixtral" else "num_experts", 0)
    is_sparse = (layer + 1) % config.get("decoder_sparse_step", 1) == 0 and layer not in config.get(
        "mlp_only_layers", ()
    )
    if config["model_type"] == "mixtral":
        block, names = "block_sparse_moe", ("w1", "w3", "w2")
    elif is_sparse:
        f = config.get("moe_intermediate_size", f)
    gate, up, down = names
    one = ((gate, f, d, bias), (up, f, d, bias), (down, d, f, bias))
    if not num_experts or not is_sparse:
        return [(f"{block}.{name}", *rest) for name, *rest in one]
    experts = [(f"{block}.experts.{e}.{name}", *rest) for e in range(num_experts) for name, *rest in one]
    return [(f"{block}.gate", num_experts, d, False), *experts]


def random_tensors(config: Mapping[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Weights under which activations stay of order one and greedy outputs vary."""
    rng = np.random.default_rng(seed)

    def uniform(shape: tuple[int, ...], std: float) -> np.ndarray:
        unit = rng.random(shape, dtype=np.float32) * np.float32(2) - np.float32(1)
        return unit * np.float32(std * 3**0.5)

    tensors: dict[str, np.ndarray] = {}
    for name, shape in tensor_shapes(config).items():
        if name.endswith("norm.weight"):
            tensors[name] = np.float32(1) + uniform(shape, 0.2)
        elif name.endswith(".bias"):
            tensors[name] = uniform(shape, 0.2)
        elif "embed_tokens" in name:  # small beside the layers' outputs, or a tied model repeats its input
            tensors[name] = uniform(shape, 0.1)
        else:
            sharper = 2.0 if "q_proj" in name or "lm_head" in name else 1.0
            tensors[name] = uniform(shape, sharper * shape[1] ** -0.5)
    dtype = _DTYPES[config.get("torch_dtype") or "float32"]
    return {name: tensor.astype(dtype) for name, tensor in tensors.items()}


def byte_level_tokenizer(vocab_size: int) -> Tokenizer:
    """Byte-level BPE: special tokens 0..4, the 256 bytes 5..260, then pairs up to vocab_size."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    pairs = [("Ġ", letter) for letter in letters] + [(a, b) for a in letters for b in letters]
    pairs = pairs[: max(0, vocab_size - len(SPECIAL_TOKENS) - len(alphabet))]
    words = [*SPECIAL_TOKENS, *alphabet, *(a + b for a, b in pairs)]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", pair="<|begin|> $A $B", special_tokens=[("<|begin|>", 0)]
    )
    return tokenizer


def write_checkpoint(directory: Path, *, seed: int = 0, num_shards: int = 1, **overrides: Any) -> Path:
    """Write config, weights, tokenizer and generation config into `directory` and return it.

    overrides: config.json fields over DEFAULTS; None leaves a field out, "null" writes null.
    """
    config: dict[str, Any] = {key: value for key, value in (DEFAULTS | overrides).items() if value is not None}
    config = {key: None if value == "null" else value for key, value in config.items()}
    directory.mkdir(parents=True, exist_ok=True)
    _write_json(directory / "config.json", config)
    generation = {"bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"]}
    _write_json(directory / "generation_config.json", generation)
    _write_weights(directory, random_tensors(config, seed), num_shards)
    byte_level_tokenizer(config["vocab_size"]).save(str(directory / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL_TOKENS[0],
        "eos_token": SPECIAL_TOKENS[1],
        "clean_up_tokenization_spaces": False,
        "model_max_length": config["max_position_embeddings"],
        "chat_template": CHAT_TEMPLATE,
    }
    _write_json(directory / "tokenizer_config.json", tokenizer_config)
    return directory


def add_tensors(checkpoint: Path, tensors: Mapping[str, Any]) -> Path:
    """Put more tensors into a checkpoint of one file and return it; numbers become float32 ones."""
    arrays = {name: np.asarray(value, getattr(value, "dtype", np.float32)) for name, value in tensors.items()}
    file = checkpoint / "model.safetensors"
    save_file(load_file(file) | arrays, file, metadata={"format": "pt"})
    return checkpoint


def _write_weights(directory: Path, tensors: dict[str, np.ndarray], num_shards: int) -> None:
    if num_shards == 1:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for i in range(num_shards):
        file = f"model-{i + 1:05}-of-{num_shards:05}.safetensors"
        shard = {name: tensors[name] for name in names[i::num_shards]}
        save_file(shard, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(directory / "model.safetensors.index.json", index)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
