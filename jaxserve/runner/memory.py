"""How much memory a model, its pool and a step need: shapes in, bytes out."""

import os
from pathlib import Path

import jax
import numpy as np

from jaxserve.core.config import ModelConfig, PoolConfig
from jaxserve.layers.moe import MOST_TOKENS_OF_ALL

_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1}


def dtype_bytes(dtype: str) -> int:
    return _DTYPE_BYTES[dtype]


def dense_matrix_parameters(model: ModelConfig) -> int:
    """Weights of the layers' matrices that every token multiplies with: all but the experts."""
    width, heads = model.hidden_size, model.num_heads * model.head_dim
    qkv = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim * width
    num_sparse = sum(model.sparse_layers)
    feed_forwards = (model.num_layers - num_sparse) * 3 * width * model.intermediate_size
    return (
        model.num_layers * (qkv + heads * width)
        + feed_forwards
        + num_sparse * model.num_experts * model.num_expert_shards * width
    )


def expert_parameters(model: ModelConfig) -> int:
    """Weights of expert number i of every layer that has experts."""
    return sum(model.sparse_layers) * 3 * model.hidden_size * model.moe_intermediate_size


def num_matrix_parameters(model: ModelConfig) -> int:
    """Weights of all matrices, embedding and head included (once if tied)."""
    tables = (1 if model.tie_word_embeddings else 2) * model.vocab_size * model.hidden_size
    return dense_matrix_parameters(model) + model.num_experts * expert_parameters(model) + tables


def num_parameters(model: ModelConfig) -> int:
    """Weights of the whole model: its matrices, norms and biases."""
    vectors = 2 * model.hidden_size  # norms
    vectors += (model.num_heads + 2 * model.num_kv_heads) * model.head_dim if model.qkv_bias else 0
    vectors += model.hidden_size if model.o_bias else 0
    vectors += 2 * model.intermediate_size + model.hidden_size if model.mlp_bias else 0  # no family has it and experts
    vectors += 2 * model.head_dim if model.qk_norm else 0
    return num_matrix_parameters(model) + model.num_layers * vectors + model.hidden_size


def weight_bytes(model: ModelConfig, *, matrix_itemsize: int | None = None) -> int:
    """Bytes of the weights on the device. matrix_itemsize: of a matrix's number, the model's own if None."""
    itemsize = dtype_bytes(model.dtype)
    matrices = num_matrix_parameters(model)
    return matrices * (matrix_itemsize or itemsize) + (num_parameters(model) - matrices) * itemsize


def kv_bytes_per_token(model: ModelConfig, pool: PoolConfig) -> int:
    """Keys and values of one token over all layers, padding included."""
    return 2 * model.num_layers * model.num_kv_heads * pool.head_dim * dtype_bytes(pool.dtype)


def step_bytes(model: ModelConfig, pool: PoolConfig, *, num_tokens: int, num_rows: int) -> int:
    """A generous estimate of what the largest step and the sampler's state need besides weights and pool.

    Widest moment of a layer: residual, gate_up and its product in the model's type, queries and
    attention output in float32; plus three float32 [rows, V] arrays of logits, and the 9 bytes a row
    and vocabulary entry that the sampler remembers.
    """
    activations = num_tokens * (4 * model.hidden_size + 3 * model.intermediate_size) * dtype_bytes(model.dtype)
    attention = num_tokens * model.num_heads * pool.head_dim * 4 * 3
    logits = max(num_rows, 64) * model.vocab_size * 4 * 3
    experts = _expert_bytes(model, num_tokens)
    return activations + attention + logits + experts + num_rows * model.vocab_size * 9


def _expert_bytes(model: ModelConfig, num_tokens: int) -> int:
    """Of a mixture of experts in the largest step: sums and the tables of who goes where, and in a small step all
    experts' activations."""
    if not model.num_experts:
        return 0
    tables = num_tokens * (4 * model.hidden_size + 20 * model.num_experts)
    an_expert = 2 * model.hidden_size + 4 * model.moe_intermediate_size
    all_experts = min(num_tokens, MOST_TOKENS_OF_ALL) * model.num_experts * an_expert * dtype_bytes(model.dtype)
    return tables + all_experts


def memory_in_use() -> tuple[int, int]:
    """(used, total) bytes of the first device; on a CPU, where JAX keeps no count, of this process and the machine."""
    stats = jax.local_devices()[0].memory_stats()
    if stats is not None:
        return stats["bytes_in_use"], stats["bytes_limit"]
    try:
        resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
        return resident_pages * os.sysconf("SC_PAGE_SIZE"), host_memory_bytes() or 0
    except (OSError, ValueError):  # not Linux: unknown, which the metrics show as 0
        return 0, 0


def host_memory_bytes() -> int | None:
    """This machine's memory; None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def format_bytes(num_bytes: float) -> str:
    """1.5 GiB, 20 MiB: for people."""
    unit = int(np.clip(np.log2(max(num_bytes, 1)) // 10, 0, 4))
    return f"{num_bytes / 1024**unit:.4g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[unit]}"
