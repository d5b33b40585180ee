"""Dealing out a mixture of experts: each device gets whole experts, and what does not divide is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxserve.core.checkpoint import load_model_config
from jaxserve.core.errors import ConfigError
from jaxserve.layers.shards import Shards
from jaxserve.models.shard import shard_of, sizes_that_divide
from jaxserve.models.weights import load_params

SIZES: dict[str, Any] = dict(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=32)
HEADS: dict[str, Any] = dict(num_attention_heads=12, num_key_value_heads=12)
QWEN3_MOE: dict[str, Any] = dict(architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", **SIZES, **HEADS)


@pytest.mark.parametrize("load_format", ["auto", "dummy"])
def test_each_device_gets_its_experts_whole(make_tiny_checkpoint: Callable[..., Path], load_format: str) -> None:
    path = make_tiny_checkpoint(**QWEN3_MOE)
    config = replace(load_model_config(path), expert_parallel=True)
    found: dict[tuple[str, ...], list[np.ndarray]] = {}

    def keep(axes: tuple[str, ...], shape: tuple[int, ...], make_shard: Callable[[int], np.ndarray]) -> jax.Array:
        found[axes] = [make_shard(number) for number in range(3)]
        return jnp.asarray(found[axes][0])

    whole = load_params(config, path, load_format)
    load_params(config, path, load_format, shards=Shards("tensor", 3), place=keep)
    layer = whole.merge(whole.leaves).layers[-1].feed_forward
    for axes, parameter in (
        (("experts", "expert_ff", "embed"), layer.experts.gate_up),
        (("experts", "embed", "expert_ff"), layer.experts.down),
    ):
        np.testing.assert_array_equal(np.concatenate(found[axes]), parameter[...])
    for router in found["all_experts", "embed"]:
        np.testing.assert_array_equal(router, layer.router.weight[...])


def test_what_does_not_divide_is_named(make_tiny_checkpoint: Callable[..., Path]) -> None:
    config = replace(load_model_config(make_tiny_checkpoint(**QWEN3_MOE)), expert_parallel=True)
    assert sizes_that_divide(config) == [1, 2, 3, 6]
    assert sizes_that_divide(replace(config, expert_parallel=False)) == [1, 2, 4]
    with pytest.raises(ConfigError, match=r"size=4: the model's 6 experts cannot be cut .* takes 1, 2, 3, 6\."):
        shard_of(config, 4)
    with pytest.raises(ConfigError, match=r"size=3: the model's moe_intermediate_size=32 .* takes 1, 2, 4\."):
        shard_of(replace(config, expert_parallel=False), 3)
