"""A model cut over 2, 4 or 8 devices says what it says on one: tokens of every kind of sampling, log probabilities."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxserve.core.errors import ConfigError
from jaxserve.llm import LLM

SMALL = {
    "dtype": "float32",
    "max_num_seqs": 4,
    "max_num_batched_tokens": 16,
    "max_model_len": 128,
    "kv_cache_memory_bytes": 1 << 20,
    "disable_log_stats": True,
}
MODELS: dict[str, dict[str, Any]] = {
    # 4 KV heads: on 8 devices each is there twice; the vocabulary is odd: the last slice is padded.
    "llama": {"num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 515},
    "qwen2": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": 517},
    "mistral": {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 24},
}
EXPERTS: dict[str, Any] = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32}
QWEN3_MOE: dict[str, Any] = {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], **EXPERTS}
MODELS["moe"] = QWEN3_MOE | {"num_hidden_layers": 3, "mlp_only_layers": [1]}
CUTS = [
    *(("llama", 2), ("llama", 8), ("qwen2", 2), ("qwen3", 4), ("mistral", 2)),
    *(("moe", 2), ("moe, whole experts", 4)),
]


def _model(name: str) -> str:
    return name.partition(",")[0]


def _cut(name: str, size: int) -> dict[str, Any]:
    return {"tensor_parallel_size": size, "enable_expert_parallel": "whole" in name}


@pytest.fixture(scope="module")
def found(make_tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By "model size", what the child process found."""
    paths = {name: str(make_tiny_checkpoint(**config)) for name, config in MODELS.items()}
    jobs = [
        {"name": f"{name} {size}", "engine": SMALL | _cut(name, size) | {"model": paths[_model(name)]}}
        for name, size in [*((name, 1) for name in MODELS), *CUTS]
    ]
    folder = tmp_path_factory.mktemp("cut")
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, str(Path(__file__).with_name("run_cut.py")), *map(str, (folder / "jobs.json",))]
    subprocess.run([*command, str(folder / "out.json")], check=True, env=os.environ, timeout=280)
    return json.loads((folder / "out.json").read_text())


@pytest.mark.parametrize(("name", "size"), CUTS)
@pytest.mark.parametrize("time", ["first", "again"])
def test_says_what_one_device_says(found: dict[str, Any], name: str, size: int, time: str) -> None:
    ours, theirs = found[f"{name} {size}"][time], found[f"{_model(name)} 1"][time]
    assert ours["tokens"] == theirs["tokens"]
    for kind in ("logprobs", "prompt_logprobs"):
        for cut, whole in zip(ours[kind], theirs[kind], strict=True):
            assert [[entry[:2] for entry in position] for position in cut] == [
                [entry[:2] for entry in position] for position in whole
            ]
            numbers = [entry[2] for position in cut for entry in position]
            assert numbers == pytest.approx([entry[2] for position in whole for entry in position], abs=2e-4)


def test_the_requests_ask_for_different_things(found: dict[str, Any]) -> None:
    tokens = found["llama 1"]["first"]["tokens"]
    assert len({tuple(one) for one in tokens}) == len(tokens)
    assert any(found["llama 1"]["first"]["prompt_logprobs"])


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (3, r"tensor_parallel_size=3: the model's 4 attention heads cannot be cut into 3 equal parts; .* 1, 2, 4\."),
        (2, r"tensor_parallel_size=2 needs 2 devices, JAX sees 1 of 'cpu'"),
        (0, "tensor_parallel_size=0 must be at least 1"),
    ],
)
def test_what_cannot_be_is_named(tiny_checkpoint: Path, size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LLM(**SMALL, model=str(tiny_checkpoint), tensor_parallel_size=size)  # pyright: ignore[reportArgumentType]


def test_whole_experts_need_experts_that_divide(
    tiny_checkpoint: Path, make_tiny_checkpoint: Callable[..., Path]
) -> None:
    with pytest.raises(ConfigError, match=r"enable_expert_parallel=True: LlamaForCausalLM in .* has no experts"):
        LLM(**SMALL, model=str(tiny_checkpoint), enable_expert_parallel=True)  # pyright: ignore[reportArgumentType]
    path = str(make_tiny_checkpoint(**QWEN3_MOE | {"num_experts": 6}))
    with pytest.raises(ConfigError, match=r"size=4: the model's 6 experts cannot be cut into 4 .* takes 1, 2\."):
        LLM(**SMALL, model=path, tensor_parallel_size=4, enable_expert_parallel=True)  # pyright: ignore[reportArgumentType]
