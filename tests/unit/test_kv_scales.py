"""Scales of an 8-bit pool: found under every name, laid out by layer, side and head, refused where they are wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from random_checkpoint import add_tensors

from jaxserve.core.checkpoint import load_model_config
from jaxserve.core.config import EngineArgs
from jaxserve.core.errors import CheckpointError
from jaxserve.models.kv_scales import load_kv_scales
from jaxserve.models.weights import load_params
from jaxserve.runner.device import this_cpu
from jaxserve.runner.resolve import resolve
from jaxserve.runner.startup import kv_scales_of

type Make = Callable[..., Path]
LAYER_0, LAYER_1 = "model.layers.0.self_attn.", "model.layers.1.self_attn."


def scales_of(path: Path) -> Any:
    return load_kv_scales(load_model_config(path), path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("k_proj.k_scale", "v_proj.v_scale"),
        ("k_scale", "v_scale"),
        ("attn.k_scale", "attn.v_scale"),
        ("qkv_proj.k_scale", "qkv_proj.v_scale"),
        ("k_proj.output_scale", "v_proj.output_scale"),
    ],
)
def test_every_name_is_known(make_tiny_checkpoint: Make, key: str, value: str) -> None:
    path = add_tensors(
        make_tiny_checkpoint(num_hidden_layers=2),
        {LAYER_0 + key: 0.5, LAYER_0 + value: 0.25, LAYER_1 + key: [2.0], LAYER_1 + value: [[3.0]]},
    )
    np.testing.assert_array_equal(scales_of(path), [[[0.5] * 2, [0.25] * 2], [[2] * 2, [3] * 2]])
    plain = make_tiny_checkpoint()
    config = load_model_config(path)
    for ours, theirs in zip(load_params(config, path).leaves, load_params(config, plain).leaves, strict=True):
        np.testing.assert_array_equal(ours, theirs)  # the scales disturb nobody who does not ask for them


def test_one_number_for_both_sides_and_one_a_head(make_tiny_checkpoint: Make) -> None:
    one = add_tensors(make_tiny_checkpoint(), {LAYER_0 + "kv_scale": 0.5})
    np.testing.assert_array_equal(scales_of(one), [[[0.5] * 2] * 2, [[1] * 2] * 2])
    heads = np.array([[0.5], [4]], ml_dtypes.bfloat16)
    each = add_tensors(make_tiny_checkpoint(), {LAYER_1 + "v_scale": heads})
    np.testing.assert_array_equal(scales_of(each), [[[1, 1], [1, 1]], [[1, 1], [0.5, 4]]])


def test_most_checkpoints_have_none(make_tiny_checkpoint: Make) -> None:
    path = add_tensors(make_tiny_checkpoint(), {LAYER_0 + "q_scale": 0.5, LAYER_0 + "attn.prob_scale": 0.5})
    assert scales_of(path) is None
    load_params(load_model_config(path), path)


def test_scales_in_several_files(make_tiny_checkpoint: Make) -> None:
    path = make_tiny_checkpoint(num_shards=2)
    (path / "model.safetensors.index.json").unlink()
    for i, (shard, name) in enumerate(zip(sorted(path.glob("*.safetensors")), ("k_scale", "v_scale"), strict=True)):
        single = path / "model.safetensors"
        shard.rename(single)
        add_tensors(path, {LAYER_0 + name: 2.0 + i}).joinpath(single.name).rename(shard)
    np.testing.assert_array_equal(scales_of(path)[0], [[2, 2], [3, 3]])


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({LAYER_0 + "k_scale": 0.0}, ["self_attn.k_scale", "0.0", "above 0", "kv_cache_dtype"]),
        ({LAYER_0 + "k_scale": -1.0}, ["-1.0", "above 0"]),
        ({LAYER_0 + "k_scale": [1.0, np.nan]}, ["nan", "finite"]),
        ({LAYER_0 + "k_scale": [1.0, 2.0, 3.0]}, ["3 numbers", "2 KV heads"]),
        ({LAYER_0 + "k_scale": np.array([1], np.int32)}, ["dtype I32", "F32"]),
        ({"model.layers.2.self_attn.k_scale": 1.0}, ["layer 2", "2 layers"]),
        ({LAYER_0 + "k_scale": 1.0, LAYER_0 + "k_proj.k_scale": 1.0}, ["layer 0", "another tensor"]),
        ({LAYER_0 + "kv_scale": 1.0, LAYER_0 + "v_scale": 1.0}, ["layer 0", "another tensor"]),
    ],
)
def test_wrong_scales_are_named(make_tiny_checkpoint: Make, tensors: dict[str, Any], words: list[str]) -> None:
    path = add_tensors(make_tiny_checkpoint(), tensors)
    with pytest.raises(CheckpointError) as caught:
        scales_of(path)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", ["k_proj.v_scale", "o_proj.k_scale", "k_zero_point", "k_scale_inv"])
def test_what_is_no_scale_stays_a_surplus_tensor(make_tiny_checkpoint: Make, name: str) -> None:
    path = add_tensors(make_tiny_checkpoint(), {LAYER_0 + name: 1.0})
    with pytest.raises(CheckpointError, match="no place for"):
        load_params(load_model_config(path), path)


@pytest.mark.parametrize(("num_devices", "expected"), [(1, [3, 5]), (2, [3, 5]), (4, [3, 3, 5, 5])])
def test_devices_that_share_a_head_each_have_its_scale(
    make_tiny_checkpoint: Make, num_devices: int, expected: list[float]
) -> None:
    sides = {f"{layer}{side}_scale": [3.0, 5.0] for layer in (LAYER_0, LAYER_1) for side in ("k", "v")}
    path = add_tensors(make_tiny_checkpoint(), sides)
    args = EngineArgs(kv_cache_dtype="fp8", tensor_parallel_size=num_devices)
    scales_L2K = kv_scales_of(resolve(args, load_model_config(path), path, this_cpu()), lambda _: None)
    assert scales_L2K is not None and scales_L2K.shape == (2, 2, len(expected))
    assert (scales_L2K == expected).all()
