"""The plan of Llama-3.1-8B on an H200 is what `resolve` decides for that device."""

from pathlib import Path

import jax
from h200_cases import LLAMA_8B, MEMORY_BYTES, llama_8b

from jaxserve.core.config import EngineArgs, PlanArgs
from jaxserve.core.model_config import model_config_from_hf
from jaxserve.models.weights import random_params
from jaxserve.plan import plan_model


def test_the_plan_is_the_engines_own() -> None:
    config, model = llama_8b(), model_config_from_hf(LLAMA_8B)
    plan = plan_model(PlanArgs(device="h200"), EngineArgs(), model, Path())
    assert plan.memory.usable == MEMORY_BYTES
    assert (plan.num_pages, plan.page_size) == (config.cache.num_pages, config.cache.page_size)
    assert (plan.max_model_len, plan.max_num_seqs) == (config.scheduler.max_model_len, config.scheduler.max_num_seqs)
    assert plan.max_num_batched_tokens == config.scheduler.max_num_batched_tokens
    assert plan.kv_dtype == config.pool.dtype and plan.kv_bytes_per_token == 131_072
    leaves = jax.eval_shape(lambda: random_params(model, 0).leaves)
    assert plan.memory.weights == sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
