"""The trained parameters as a Hugging Face Llama checkpoint: weights, configs and an honest model card."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from jaxserve.core.config import ModelConfig
from jaxserve.demo.learning import Params
from jaxserve.demo.tokenizer import BEGIN_ID, END_ID
from jaxserve.models.llama import Llama


def checkpoint_tensors(config: ModelConfig, params: Params) -> dict[str, NDArray[np.generic]]:
    """bfloat16 tensors under their Hugging Face names, the fused projections taken apart again."""
    tensors: dict[str, NDArray[np.generic]] = {}
    for path, parts in Llama.checkpoint_layout(config).items():
        fused = np.asarray(params[path]).astype(ml_dtypes.bfloat16)
        first = 0
        for name, num_rows in parts:
            tensors[name] = np.ascontiguousarray(fused[first : first + num_rows])
            first += num_rows
    return tensors


def config_json(config: ModelConfig) -> dict[str, object]:
    """The numbers of the model as config.json names them."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope.theta,
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": BEGIN_ID,
        "eos_token_id": END_ID,
        "dtype": "bfloat16",
    }


def save_checkpoint(directory: Path, config: ModelConfig, params: Params, card: str) -> None:
    """Write everything but the tokenizer files into `directory`."""
    save_file(checkpoint_tensors(config, params), directory / "model.safetensors", metadata={"format": "pt"})
    generation = {
        "bos_token_id": BEGIN_ID, "eos_token_id": END_ID, "pad_token_id": END_ID, "do_sample": True, "temperature": 0.7,
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config_json(config), indent=2) + "\n")
    (directory / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    (directory / "README.md").write_text(card)


CARD = """\
---
license: apache-2.0
language: en
pipeline_tag: text-generation
---
# jaxserve demonstration model

A Llama of {num_params:,} parameters ({num_layers} layers, width {hidden_size}, {num_heads} query and
{num_kv_heads} KV heads of {head_dim}, vocabulary {vocab_size}, bfloat16). It exists so that `jaxserve` can
be tried on any machine, without a download: it writes understandable sentences and knows almost nothing.

## What it was trained on

Text that this repository makes: templates in `jaxserve/demo/`, and no text from anywhere else. Short
conversations, questions about a small closed world (capitals of {num_capitals} countries, {num_animals} animals,
colours, opposites, days, numbers up to ten and their sums), tiny stories, simple instructions, and a few
sentences about jaxserve itself.

## How

`python -m jaxserve.demo.train --out DIRECTORY --minutes {minutes:g}`: {num_steps:,} steps of {batch} rows of
{length} tokens ({num_tokens:,} tokens of {num_documents:,} documents), Muon and AdamW, float32, on one CPU core
that other work shared: {elapsed_min:.0f} minutes, {cpu_min:.0f} of them processor time. The gradient goes through the
model code that serves (`jaxserve/models/llama.py`). Mean loss on {num_held_out} documents of the same templates
that were not in the training text: {held_out_loss:.3f} nats a token.

## What it cannot do

Anything else. It does not reason, and after so short a training its facts are often wrong even inside its
small world: sums, comparisons of numbers, what comes after what, lists, and names it has not seen go wrong
most of all. It knows no news, no people, no code and only English. It answers questions outside its world
with "I do not know that" when it notices, and with nonsense when it does not. Conversations longer than
about {length} tokens are longer than anything it has seen. Never use it for anything but trying and testing
the server.
"""
