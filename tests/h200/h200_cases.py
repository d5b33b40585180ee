"""What is compiled for an H200: Llama-3.1-8B's steps with the engine's own defaults, and each kernel by itself."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jaxserve.batch.buckets import Bucket
from jaxserve.core.config import EngineArgs, EngineConfig
from jaxserve.core.model_config import model_config_from_hf
from jaxserve.runner.device import Device
from jaxserve.runner.resolve import resolve
from pallas_kernels.mosaic_gpu.widen import NARROW_DTYPES

LLAMA_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "dtype": "bfloat16",
}
MEMORY_BYTES = int(0.92 * 151_397_597_184)  # gpu_memory_utilization of an H200

STEPS: dict[str, Bucket] = {
    "decode_16": Bucket(16, 16),
    "decode_256": Bucket(256, 256),
    "mixed_8192": Bucket(8192, 256),
}

# A layer of Qwen3-30B-A3B, by the tokens of a step.
EXPERTS: dict[str, Any] = dict(num_experts=128, num_here=128, num_picked=8, size=2048, width=768, normalize=True)
EXPERT_STEPS = {"experts_1": 1, "experts_64": 64, "experts_8192": 8192}

LLAMA_HEADS: dict[str, Any] = dict(
    num_rows=16,
    num_tokens=16,
    heads=32,
    kv_heads=8,
    head_dim=128,
    page_size=64,
    dtype=jnp.bfloat16,
    pool_dtype=None,  # the queries'
    window=None,
    softcap=None,
)


def _variants() -> dict[str, dict[str, Any]]:
    """The corners of the contract: pages and head sizes against each other, every other option by itself."""
    cases: dict[str, dict[str, Any]] = {
        f"page_{page}_head_{head}": dict(page_size=page, head_dim=head)
        for page in (16, 32, 64, 128)
        for head in (64, 128, 256)
    }
    cases |= {f"group_{n}": dict(heads=8 * n) for n in (1, 2, 7, 16)}
    cases |= {f"float16_head_{head}": dict(dtype=jnp.float16, head_dim=head) for head in (64, 128, 256)}
    cases |= {
        f"{jnp.dtype(pool).name}_{'bfloat16' if dtype == jnp.bfloat16 else 'float16'}_head_{head}": dict(
            pool_dtype=pool, dtype=dtype, head_dim=head
        )
        for pool in NARROW_DTYPES
        for dtype in (jnp.bfloat16, jnp.float16)
        for head in (64, 128, 256)
    }
    narrow: dict[str, Any] = dict(pool_dtype=jnp.float8_e4m3fn)
    cases |= {f"float8_page_{page}": narrow | dict(page_size=page) for page in (8, 16, 32, 128)}
    cases |= {f"float8_group_{n}": narrow | dict(heads=8 * n) for n in (1, 7, 16)}
    cases |= {"float8_both": narrow | dict(window=100, softcap=30.0)}
    cases |= {"window": dict(window=4096), "softcap": dict(softcap=30.0), "both": dict(window=100, softcap=30.0)}
    cases |= {"one_row": dict(num_rows=1, num_tokens=1), "rows_256": dict(num_rows=256, num_tokens=256)}
    # The kernel of prompt chunks beside that of single queries.
    chunks = {f"chunks_{name}": options | dict(num_tokens=512) for name, options in cases.items() if "rows" not in name}
    return cases | chunks | {"chunks_group_3": dict(num_tokens=512, heads=24), "chunks": dict(num_tokens=8192)}


KERNELS: dict[str, dict[str, Any]] = {name: LLAMA_HEADS | options for name, options in _variants().items()}


def _triton_variants() -> dict[str, dict[str, Any]]:
    """Of 8 rows: decode, merge and chunks each. Cards without float8 are not asked for it."""
    base = LLAMA_HEADS | dict(num_tokens=512, pool_dtype=jnp.bfloat16, capabilities=(80, 89, 90))
    float32: dict[str, Any] = dict(heads=8, kv_heads=2, head_dim=64, dtype=jnp.float32, pool_dtype=jnp.float32)
    cases: dict[str, dict[str, Any]] = {
        "llama": {},
        "llama_long": dict(num_tokens=8192, capabilities=(90,)),  # the others compile the same for 512
        "wide": dict(heads=16, head_dim=256, page_size=32),
        "wide_long": dict(heads=32, head_dim=256, num_tokens=8192),
        "one_kv_head": dict(heads=16, kv_heads=1, head_dim=64, page_size=16),
        "odd": dict(heads=9, kv_heads=3, head_dim=96, page_size=128),
        "window_and_cap": dict(window=1000, softcap=30.0),
        "float32": float32,
        "float8_pool": dict(pool_dtype=jnp.float8_e4m3fn, capabilities=(89, 90)),
    }
    return {name: base | options for name, options in cases.items()}


# By jax-triton, for several generations of cards.
TRITON = _triton_variants()
TRITON_FILTERS: dict[str, dict[str, Any]] = {
    f"filters_{vocab}": dict(vocab=vocab, capabilities=(80, 89, 90)) for vocab in (32003, 128256)
}


def llama_8b() -> EngineConfig:
    """What `jaxserve serve` would run with on an H200; the page pool takes what memory is left."""
    model = model_config_from_hf(LLAMA_8B)
    config = resolve(EngineArgs(), model, Path(), Device("gpu", "NVIDIA H200", MEMORY_BYTES))
    return replace(config, attention_implementation="mosaic_gpu")


CUTS: dict[str, tuple[int, int]] = {"cut_2": (1, 2), "cut_4": (1, 4), "cut_8": (1, 8), "cut_2x8": (2, 8)}
"""Hosts, and devices of each."""

CUT_BUCKET = Bucket(64, 64)


def llama_70b(num_devices: int) -> EngineConfig:
    """Llama-3.1-70B with two of its layers, which are all alike, over so many H200s."""
    widths = dict(hidden_size=8192, intermediate_size=28672, num_attention_heads=64, num_hidden_layers=2)
    model = model_config_from_hf(LLAMA_8B | widths)
    args = EngineArgs(tensor_parallel_size=num_devices)
    config = resolve(args, model, Path(), Device("gpu", "NVIDIA H200", MEMORY_BYTES))
    return replace(config, attention_implementation="mosaic_gpu")
