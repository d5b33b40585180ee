"""Whatever the model, the device and the flags: the plan keeps its word, and so does each remedy."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from jaxserve.core.config import EngineArgs, ModelConfig, PlanArgs
from jaxserve.core.errors import ConfigError, DoesNotFit
from jaxserve.core.model_config import longest_context
from jaxserve.models.weights import random_params
from jaxserve.plan import plan_model, planned_device
from jaxserve.runner.memory import num_parameters
from jaxserve.runner.resolve import resolve


@st.composite
def models(draw: st.DrawFn, max_layers: int = 80) -> ModelConfig:
    kv_heads, num_experts = draw(st.integers(1, 8)), draw(st.integers(0, 16))
    model = _dense(draw, max_layers, kv_heads)
    if not num_experts or model.mlp_bias:  # no family has both
        return model
    layers = draw(st.lists(st.booleans(), min_size=model.num_layers, max_size=model.num_layers))
    if not any(layers):
        return model
    return replace(
        model,
        architecture=draw(st.sampled_from(["MixtralForCausalLM", "Qwen3MoeForCausalLM"])),
        num_experts=num_experts,
        num_experts_per_tok=draw(st.integers(1, num_experts)),
        moe_intermediate_size=draw(st.integers(1, 5000)),
        sparse_layers=tuple(layers),
    )


def _dense(draw: st.DrawFn, max_layers: int, kv_heads: int) -> ModelConfig:
    return ModelConfig(
        architecture="Qwen3ForCausalLM",
        vocab_size=draw(st.integers(2, 200_000)),
        hidden_size=draw(st.integers(1, 1024)) * 8,
        num_layers=draw(st.integers(1, max_layers)),
        num_heads=kv_heads * draw(st.integers(1, 16)),
        num_kv_heads=kv_heads,
        head_dim=draw(st.sampled_from([16, 64, 80, 96, 128, 256])),
        intermediate_size=draw(st.integers(1, 30_000)),
        max_position_embeddings=draw(st.integers(2, 1 << 18)),
        tie_word_embeddings=draw(st.booleans()),
        qkv_bias=draw(st.booleans()),
        o_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
        dtype=draw(st.sampled_from(["bfloat16", "float16", "float32"])),
    )


DEVICES = st.sampled_from(["h200", "h100", "a100-40gb", "rtx4090", "cpu"]) | st.integers(1, 200).map(
    lambda gib: f"memory={gib}GiB,bandwidth=1TB/s,tflops=100"
)
ARGS = st.fixed_dictionaries(
    {},
    optional=dict(
        page_size=st.integers(1, 256),
        max_num_seqs=st.integers(1, 2048),
        max_num_batched_tokens=st.integers(1, 65_536),
        gpu_memory_utilization=st.floats(0.05, 1.0),
        kv_cache_dtype=st.sampled_from(["auto", "float32", "fp8"]),
        kv_cache_memory_bytes=st.integers(1, 1 << 38),
        max_model_len=st.integers(1, 1 << 18),
    ),
)


@settings(max_examples=200, deadline=None)
@given(models(), DEVICES, ARGS)
def test_the_longest_context_is_accepted_and_one_more_is_not(model: ModelConfig, device: str, args: Any) -> None:
    engine_args = EngineArgs(**args)
    try:
        plan = plan_model(PlanArgs(device=device), engine_args, model, Path())
    except ConfigError:
        assume(False)
        raise
    _, seen = planned_device(device, engine_args.gpu_memory_utilization)
    longest = replace(engine_args, max_model_len=plan.longest_context)
    config = resolve(longest, model, Path(), seen)
    assert config.cache.num_pages * config.cache.page_size >= config.scheduler.max_model_len == plan.longest_context
    with pytest.raises(ConfigError):
        resolve(replace(engine_args, max_model_len=plan.longest_context + 1), model, Path(), seen)
    assert plan.max_model_len <= plan.longest_context
    assert resolve(engine_args, model, Path(), seen).cache.num_pages == plan.num_pages
    memory = plan.memory
    parts = (memory.weights, memory.kv_pool, memory.step, memory.reserve, memory.unused or 0)
    assert min(parts) >= 0 and memory.usable == sum(parts)
    assert all(point.batch * -(-point.context_len // plan.page_size) <= plan.num_pages for point in plan.decode)


@settings(max_examples=200, deadline=None)
@given(models(), DEVICES, ARGS)
def test_each_remedy_alone_makes_it_fit(model: ModelConfig, device: str, args: Any) -> None:
    engine_args = EngineArgs(**args)
    try:
        plan_model(PlanArgs(device=device), engine_args, model, Path())
        assume(False)
    except DoesNotFit as error:
        message, remedies = str(error), error.remedies
    except ConfigError:
        assume(False)
        raise
    assert remedies or "takes a device of" in message
    for flag, value in remedies.items():
        assert f"{flag} to " in message and str(value) in message
        changed = model if flag != "dtype" else replace(model, dtype=str(value))
        assert fits(device, replace(engine_args, **{flag: value}), changed)
        if flag in ("max_model_len", "max_num_batched_tokens", "max_num_seqs"):  # nothing nearer does
            assert not fits(device, replace(engine_args, **{flag: int(value) + 1}), model)


def fits(device: str, args: EngineArgs, model: ModelConfig) -> bool:
    """Whether it fits with room for one useful request, where no length is asked for."""
    try:
        plan = plan_model(PlanArgs(device=device), args, model, Path())
    except ConfigError:
        return False
    return args.max_model_len != "auto" or plan.max_model_len >= min(2048, longest_context(model))


@settings(max_examples=25, deadline=None)
@given(models(max_layers=2))
@example(ModelConfig("LlamaForCausalLM", 10, 8, 1, 1, 1, 16, 4, 100))
def test_parameters_are_those_of_the_model(model: ModelConfig) -> None:
    leaves = jax.eval_shape(lambda: random_params(model, 0).leaves)
    assert num_parameters(model) == sum(leaf.size for leaf in leaves)
