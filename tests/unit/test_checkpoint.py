"""Finding a checkpoint and reading its files, without running or following anything it says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxserve.core.checkpoint import (
    load_model_config,
    read_generation_config,
    read_hf_config,
    read_json,
    resolve_model_path,
    weight_files,
)
from jaxserve.core.errors import CheckpointError, ConfigError
from jaxserve.core.model_config import model_config_from_hf

type Make = Callable[..., Path]


def edit_config(path: Path, **changes: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))


def test_a_directory_is_taken_as_it_is(tiny_checkpoint: Path) -> None:
    assert resolve_model_path(str(tiny_checkpoint)) == tiny_checkpoint


@pytest.mark.parametrize("model", ["/no/such/dir", "a/b/c", "no way?", "../no-such-dir"])
def test_what_is_neither_directory_nor_hub_id(model: str) -> None:
    with pytest.raises(ConfigError, match="no such directory"):
        resolve_model_path(model)


def test_a_file_is_not_a_model(tiny_checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="is a file"):
        resolve_model_path(str(tiny_checkpoint / "config.json"))


def test_offline_and_not_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE"):
        resolve_model_path("nobody/no-such-model")


def test_config_through_transformers_equals_config_read_plainly(make_tiny_checkpoint: Make) -> None:
    rope = {"type": "dynamic", "factor": 2.0}
    cases: list[dict[str, Any]] = [
        {},
        {"rope_scaling": rope, "num_key_value_heads": None, "head_dim": None},
        {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": "null"},
        {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 8},
        {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "use_sliding_window": True},
    ]
    for overrides in cases:
        path = make_tiny_checkpoint(**overrides)
        plain = model_config_from_hf(read_json(path, "config.json"), generation_config=read_generation_config(path))
        assert load_model_config(path) == plain


def test_overrides_reach_the_config(tiny_checkpoint: Path) -> None:
    assert load_model_config(tiny_checkpoint, overrides={"rope_theta": 5.0}).rope.theta == 5.0


def test_code_of_a_checkpoint_is_never_run(make_tiny_checkpoint: Make, tmp_path: Path) -> None:
    path = make_tiny_checkpoint()
    marker = tmp_path / "ran"
    (path / "configuration_evil.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Evil: pass\n")
    edit_config(path, auto_map={"AutoConfig": "configuration_evil.Evil"})
    assert load_model_config(path).hidden_size == 64
    edit_config(path, model_type="evil")
    assert load_model_config(path).hidden_size == 64
    assert not marker.exists()


def test_an_unsupported_architecture_is_refused_with_the_list(make_tiny_checkpoint: Make) -> None:
    path = make_tiny_checkpoint()
    edit_config(path, architectures=["BloomForCausalLM"], model_type="bloom")
    with pytest.raises(ConfigError, match=r"BloomForCausalLM.*LlamaForCausalLM, MistralForCausalLM"):
        read_hf_config(path)


@pytest.mark.parametrize("text", ["{", "[1]", '"x"', "\x00", "[" * 100_000])
def test_a_broken_config_is_refused(make_tiny_checkpoint: Make, text: str) -> None:
    path = make_tiny_checkpoint()
    (path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_hf_config(path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"lacks config\.json"):
        read_hf_config(tmp_path)
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors"):
        weight_files(tmp_path)


def test_shards_come_from_the_index(make_tiny_checkpoint: Make) -> None:
    path = make_tiny_checkpoint(num_shards=3)
    (path / "stray.safetensors").write_bytes(b"not looked at")
    assert [file.name for file in weight_files(path)] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]


def test_an_absent_shard_is_named(make_tiny_checkpoint: Make) -> None:
    path = make_tiny_checkpoint(num_shards=2)
    (path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00002"):
        weight_files(path)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/secret.safetensors", "a/b.safetensors", "weights.bin"])
def test_an_index_cannot_lead_out(make_tiny_checkpoint: Make, name: str) -> None:
    path = make_tiny_checkpoint(num_shards=2)
    index = {"weight_map": {"model.norm.weight": name}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"leads out|no safetensors file"):
        weight_files(path)


@pytest.mark.parametrize("weight_map", [None, [], {}, {"a": 3}])
def test_a_nonsensical_index_is_refused(make_tiny_checkpoint: Make, weight_map: object) -> None:
    path = make_tiny_checkpoint(num_shards=2)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match="index"):
        weight_files(path)


def test_a_link_out_is_refused_but_a_hub_snapshot_is_not(tiny_checkpoint: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "config.json").symlink_to(tiny_checkpoint / "config.json")
    with pytest.raises(CheckpointError, match="link that leads out"):
        read_hf_config(linked)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "abc").write_bytes((tiny_checkpoint / "config.json").read_bytes())
    snapshot = tmp_path / "snapshots" / "123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    assert read_hf_config(snapshot)["hidden_size"] == 64
