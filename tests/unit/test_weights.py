"""Loading weights: values land where they belong, and every fault of a file is refused by name."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_checkpoint import DEFAULTS, random_tensors
from safetensors.numpy import load_file, save_file

from jaxserve.core.checkpoint import load_model_config
from jaxserve.core.config import ModelConfig
from jaxserve.core.errors import CheckpointError, ConfigError
from jaxserve.layers.shards import Shards
from jaxserve.models.llama import Llama
from jaxserve.models.registry import model_class
from jaxserve.models.weights import load_params

type Make = Callable[..., Path]
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


def load(path: Path) -> Llama:
    loaded = load_params(load_model_config(path), path)
    return loaded.merge(loaded.leaves)


def rewrite(path: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")


def test_every_tensor_lands_in_its_place(make_tiny_checkpoint: Make) -> None:
    path = make_tiny_checkpoint(attention_bias=True, mlp_bias=True)
    tensors = random_tensors(DEFAULTS | {"attention_bias": True, "mlp_bias": True})
    model = load(path)
    assert model.head is not None
    np.testing.assert_array_equal(model.head.weight[...], tensors["lm_head.weight"])
    np.testing.assert_array_equal(model.embed.weight[...], tensors["model.embed_tokens.weight"])
    np.testing.assert_array_equal(model.norm.weight[...], tensors["model.norm.weight"])
    for i, layer in enumerate(model.layers):
        attention, mlp = f"model.layers.{i}.self_attn.", f"model.layers.{i}.mlp."
        for kind in ("weight", "bias"):
            qkv = np.concatenate([tensors[f"{attention}{name}_proj.{kind}"] for name in "qkv"])
            np.testing.assert_array_equal(getattr(layer.attention.qkv, kind)[...], qkv)
            np.testing.assert_array_equal(getattr(layer.attention.o, kind)[...], tensors[f"{attention}o_proj.{kind}"])
            gate_up = np.concatenate([tensors[f"{mlp}{name}_proj.{kind}"] for name in ("gate", "up")])
            np.testing.assert_array_equal(getattr(layer.feed_forward.gate_up, kind)[...], gate_up)
            np.testing.assert_array_equal(
                getattr(layer.feed_forward.down, kind)[...], tensors[f"{mlp}down_proj.{kind}"]
            )
        norm = tensors[f"model.layers.{i}.post_attention_layernorm.weight"]
        np.testing.assert_array_equal(layer.feed_forward_norm.weight[...], norm)


@pytest.mark.parametrize(
    ("family", "block", "names"),
    [
        ("mixtral", "block_sparse_moe", ("w1", "w3", "w2")),
        ("qwen3_moe", "mlp", ("gate_proj", "up_proj", "down_proj")),
    ],
)
def test_experts_lie_in_a_row(make_tiny_checkpoint: Make, family: str, block: str, names: tuple[str, ...]) -> None:
    architecture = {"mixtral": "MixtralForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM"}[family]
    sizes: dict[str, Any] = dict(num_local_experts=3, num_experts=3, num_experts_per_tok=2, moe_intermediate_size=128)
    path = make_tiny_checkpoint(architectures=[architecture], model_type=family, **sizes)
    tensors, layer = load_file(path / "model.safetensors"), load(path).layers[1].feed_forward
    prefix = f"model.layers.1.{block}."
    np.testing.assert_array_equal(layer.router.weight[...], tensors[prefix + "gate.weight"])
    for e in range(3):
        gate, up, down = (tensors[f"{prefix}experts.{e}.{name}.weight"] for name in names)
        np.testing.assert_array_equal(layer.experts.gate_up[...][e], np.concatenate([gate, up]))
        np.testing.assert_array_equal(layer.experts.down[...][e], down)
    rewrite(path, lambda tensors: tensors.update({f"{prefix}experts.2.{names[2]}.weight": np.ones((128, 64))}))
    with pytest.raises(CheckpointError, match=rf"experts\.2\.{names[2]}\.weight has shape \[128, 64\]"):
        load(path)


@pytest.mark.parametrize("family", ["MixtralForCausalLM", "Qwen3MoeForCausalLM"])
def test_a_shard_has_its_part_of_every_expert(make_tiny_checkpoint: Make, family: str) -> None:
    sizes: dict[str, Any] = dict(num_local_experts=3, num_experts=3, num_experts_per_tok=2, moe_intermediate_size=48)
    model_type = "mixtral" if family.startswith("Mixtral") else "qwen3_moe"
    path = make_tiny_checkpoint(architectures=[family], model_type=model_type, intermediate_size=48, **sizes)
    config, parts = load_model_config(path), []

    def keep(axes: tuple[str, ...], shape: tuple[int, ...], make_shard: Callable[[int], np.ndarray]) -> jax.Array:
        shards = [make_shard(number) for number in range(2)]
        assert all(shard.shape == shape for shard in shards)
        parts.append((axes, shards))
        return jnp.asarray(shards[0])

    whole = load_params(config, path)
    load_params(config, path, shards=Shards("tensor", 2), place=keep)
    found = {axes: shards for axes, shards in parts if "ff" in axes and len(axes) == 3}
    layer = whole.merge(whole.leaves).layers[1].feed_forward
    gate, up = np.split(np.asarray(layer.experts.gate_up[...]), 2, axis=1)
    halves = [np.concatenate([half[:, 24 * i : 24 * (i + 1)] for half in (gate, up)], axis=1) for i in range(2)]
    for got, want in zip(found["all_experts", "ff", "embed"], halves, strict=True):
        np.testing.assert_array_equal(got, want)
    down = np.concatenate(found["all_experts", "embed", "ff"], axis=2)
    np.testing.assert_array_equal(down, layer.experts.down[...])


def test_shards_and_dtypes_give_the_same_model(make_tiny_checkpoint: Make) -> None:
    whole, sharded = make_tiny_checkpoint(), make_tiny_checkpoint(num_shards=3)
    config = load_model_config(whole)
    for one, other in zip(load_params(config, whole).leaves, load_params(config, sharded).leaves, strict=True):
        np.testing.assert_array_equal(one, other)
    narrow = load_params(load_model_config(whole, dtype="bfloat16"), whole).leaves
    stored = make_tiny_checkpoint(torch_dtype="bfloat16")
    for one, other in zip(narrow, load_params(load_model_config(stored), stored).leaves, strict=True):
        assert one.dtype == other.dtype == jnp.bfloat16
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_redundant_tensors_of_older_tools_are_passed_over(make_tiny_checkpoint: Make) -> None:
    path = make_tiny_checkpoint(tie_word_embeddings=True)

    def add(tensors: dict[str, np.ndarray]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)

    rewrite(path, add)
    assert load(path).head is None


def test_a_missing_tensor_is_named(make_tiny_checkpoint: Make) -> None:
    path = make_tiny_checkpoint()
    rewrite(path, lambda tensors: tensors.pop(Q_PROJ))
    with pytest.raises(CheckpointError, match=rf"lacks {Q_PROJ} \[64, 64\]"):
        load(path)


def test_a_surplus_tensor_is_named(make_tiny_checkpoint: Make) -> None:
    path = make_tiny_checkpoint()
    rewrite(path, lambda tensors: tensors.update({"model.layers.2.mlp.extra": np.ones(3, np.float32)}))
    with pytest.raises(CheckpointError, match=r"model\.layers\.2\.mlp\.extra \(model\.safetensors\).*no place"):
        load(path)


@pytest.mark.parametrize("shape", [(64, 32), (64,), (64, 64, 1), (0, 64), (128, 32)])
def test_a_wrong_shape_is_named_with_both_shapes(make_tiny_checkpoint: Make, shape: tuple[int, ...]) -> None:
    path = make_tiny_checkpoint()
    rewrite(path, lambda tensors: tensors.update({Q_PROJ: np.ones(shape, np.float32)}))
    with pytest.raises(CheckpointError) as caught:
        load(path)
    for word in (Q_PROJ, str(list(shape)), "[64, 64]", "model.safetensors"):
        assert word in str(caught.value)


def test_an_integer_tensor_is_refused(make_tiny_checkpoint: Make) -> None:
    path = make_tiny_checkpoint()
    rewrite(path, lambda tensors: tensors.update({Q_PROJ: np.ones((64, 64), np.int8)}))
    with pytest.raises(CheckpointError, match=f"{Q_PROJ} has dtype I8"):
        load(path)


def test_a_tensor_in_two_shards_is_refused(make_tiny_checkpoint: Make) -> None:
    path = make_tiny_checkpoint(num_shards=2)
    second = path / "model-00002-of-00002.safetensors"
    tensors = load_file(second)
    first = load_file(path / "model-00001-of-00002.safetensors")
    name = next(iter(first))
    save_file(tensors | {name: first[name]}, second)
    with pytest.raises(CheckpointError, match=f"{name} is in two files"):
        load(path)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 3000, -1])
def test_a_truncated_file_is_refused(make_tiny_checkpoint: Make, keep: int) -> None:
    path = make_tiny_checkpoint()
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors .* not a whole safetensors file"):
        load(path)


def header_file(path: Path, header: dict[str, object] | bytes, length: int | None = None, data: bytes = b"") -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    stated = len(raw) if length is None else length
    (path / "model.safetensors").write_bytes(struct.pack("<Q", stated) + raw + data)


@pytest.mark.parametrize("length", [1 << 40, (1 << 64) - 1, 99_000_000, 1])
def test_a_lying_header_length_is_refused(make_tiny_checkpoint: Make, length: int) -> None:
    path = make_tiny_checkpoint()
    header_file(path, {}, length=length)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load(path)


def entry(start: int, stop: int, shape: list[int]) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    "header",
    [
        b"{not json}",
        b"[]",
        b"\xff\xfe",
        {"a": entry(0, 16, [4]), "b": entry(8, 24, [4])},  # overlapping
        {"a": entry(0, 1 << 50, [1 << 48])},  # far beyond the end
        {"a": entry(0, 8, [4])},  # shape and offsets disagree
        {"a": entry(16, 0, [4])},  # backwards
        {"a": entry(0, 0, [1 << 62, 1 << 62])},  # overflows
    ],
)
def test_a_lying_header_is_refused(make_tiny_checkpoint: Make, header: dict[str, object] | bytes) -> None:
    path = make_tiny_checkpoint()
    header_file(path, header, data=bytes(24))
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load(path)


def test_dummy_weights_come_from_the_seed(tiny_checkpoint: Path) -> None:
    config = load_model_config(tiny_checkpoint)
    one, same, other = (load_params(config, Path("/nowhere"), "dummy", seed) for seed in (1, 1, 2))
    for a, b in zip(one.leaves, same.leaves, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(not np.array_equal(a, b) for a, b in zip(one.leaves, other.leaves, strict=True))
    model = one.merge(one.leaves)
    assert float(jnp.std(model.layers[0].feed_forward.down.weight[...])) == pytest.approx(128**-0.5, rel=0.05)
    np.testing.assert_array_equal(model.norm.weight[...], np.ones(64))


def test_an_unknown_load_format_is_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match=r"'pickle'.*auto, safetensors, orbax, dummy"):
        load_params(load_model_config(tiny_checkpoint), tiny_checkpoint, "pickle")


def test_the_registry_refuses_what_it_does_not_hold() -> None:
    with pytest.raises(ConfigError, match=r"T5.*LlamaForCausalLM"):
        model_class("T5")


def test_the_layout_names_every_parameter_of_the_model(make_tiny_checkpoint: Make) -> None:
    path = make_tiny_checkpoint(architectures=["Qwen3ForCausalLM"], model_type="qwen3", attention_bias=True)
    config: ModelConfig = load_model_config(path)
    names = {name for parts in Llama.checkpoint_layout(config).values() for name, _ in parts}
    assert names == set(load_file(path / "model.safetensors"))
    assert load(path).layers[0].attention.q_norm is not None
