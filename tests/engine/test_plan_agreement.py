"""A plan is what the engine then allocates: real engines on this machine."""

from pathlib import Path
from typing import Any

import jax
import pytest

from jaxserve.core.config import EngineArgs, PlanArgs
from jaxserve.engine.core import EngineCore
from jaxserve.plan import make_plan

FEW_SHAPES: dict[str, Any] = dict(max_num_seqs=2, max_num_batched_tokens=16)


def check(**args: Any) -> None:
    engine_args = EngineArgs(**args)
    plan = make_plan(PlanArgs(), engine_args)
    core = EngineCore(engine_args, lambda line: None)
    pools = core.runner._state.paged.pools
    assert [pool.shape[0] for pool in pools] == [plan.num_pages] * core.config.model.num_layers
    assert sum(pool.nbytes for pool in pools) == plan.memory.kv_pool == plan.num_kv_tokens * plan.kv_bytes_per_token
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(core.runner._leaves)) == plan.memory.weights
    assert core.config.scheduler.max_model_len == plan.max_model_len
    assert core.config.cache.page_size == plan.page_size


def test_the_demo_model() -> None:
    check(**FEW_SHAPES)


@pytest.mark.parametrize(
    "args",
    [
        dict(page_size=8, kv_cache_memory_bytes=1 << 20),
        dict(max_model_len=100, kv_cache_dtype="fp8"),
        dict(dtype="bfloat16"),
    ],
)
def test_a_tiny_llama(tiny_checkpoint: Path, args: dict[str, Any]) -> None:
    check(model=str(tiny_checkpoint), **FEW_SHAPES, **args)


def test_a_tiny_qwen3(make_tiny_checkpoint: Any) -> None:
    path = make_tiny_checkpoint(
        architectures=["Qwen3ForCausalLM"], model_type="qwen3", num_hidden_layers=1, tie_word_embeddings=True
    )
    check(model=str(path), **FEW_SHAPES)


def test_weights_are_not_needed(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny_checkpoint / "config.json").read_text())
    plan = make_plan(PlanArgs(), EngineArgs(model=str(tmp_path)))
    full = make_plan(PlanArgs(), EngineArgs(model=str(tiny_checkpoint)))
    assert plan.memory == full.memory
