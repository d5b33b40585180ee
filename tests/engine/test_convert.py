"""`jaxserve convert`: the same numbers come back, whole or by shard, and nothing that is broken is served."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine_driver import Driver, Wish, make_engine
from random_checkpoint import add_tensors

from jaxserve.cli import main
from jaxserve.convert import convert
from jaxserve.core.checkpoint import CONVERTED_FILE, load_model_config
from jaxserve.core.errors import CheckpointError, ConfigError
from jaxserve.core.params import SamplingParams
from jaxserve.layers.shards import Shards
from jaxserve.models.kv_scales import load_kv_scales
from jaxserve.models.weights import load_params

type Make = Callable[..., Path]
LLAMA: dict[str, Any] = {"attention_bias": True, "mlp_bias": True, "vocab_size": 509}
QWEN3_MOE: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "mlp_only_layers": [0],
    "tie_word_embeddings": True,
}


def silent(line: str) -> None:
    pass


def converted(source: Path, tmp_path: Path, dtype: str = "auto") -> Path:
    return convert(str(source), tmp_path / "out", dtype, progress=silent).path


@pytest.mark.parametrize("overrides", [LLAMA, QWEN3_MOE])
def test_leaves_are_the_same(make_tiny_checkpoint: Make, tmp_path: Path, overrides: dict[str, Any]) -> None:
    source = make_tiny_checkpoint(**overrides)
    out = converted(source, tmp_path)
    assert not [*out.glob("*.safetensors"), *out.parent.glob(".*")]
    config = load_model_config(out)
    assert config == load_model_config(source)
    ours, theirs = load_params(config, out).leaves, load_params(config, source).leaves
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_tokens_are_the_same(make_tiny_checkpoint: Make, tmp_path: Path) -> None:
    source = make_tiny_checkpoint(**QWEN3_MOE)
    out = converted(source, tmp_path)
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    wishes = [Wish([7, 9, 30], params), Wish([5] * 9, params)]
    limits: dict[str, Any] = dict(max_num_seqs=2, max_num_batched_tokens=16, kv_cache_memory_bytes=1 << 20)
    answers = [
        [answer.token_ids for answer in Driver(make_engine(path, **limits)).run(wishes)] for path in (source, out)
    ]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("num_shards", [2, 4])
@pytest.mark.parametrize(("overrides", "whole_experts"), [(LLAMA, False), (QWEN3_MOE, False), (QWEN3_MOE, True)])
def test_any_mesh_gets_its_shards(
    make_tiny_checkpoint: Make, tmp_path: Path, overrides: dict[str, Any], whole_experts: bool, num_shards: int
) -> None:
    """Also with fewer KV heads than shards, and a vocabulary that does not divide."""
    source = make_tiny_checkpoint(**overrides)
    out = converted(source, tmp_path)

    def shards_of(path: Path) -> list[np.ndarray]:
        parts: list[np.ndarray] = []

        def keep(axes: tuple[str, ...], shape: tuple[int, ...], make_shard: Callable[[int], np.ndarray]) -> jax.Array:
            parts.extend(make_shard(number) for number in range(num_shards))
            return jnp.asarray(parts[-1])

        config = replace(load_model_config(path), expert_parallel=whole_experts)
        load_params(config, path, shards=Shards("tensor", num_shards), place=keep)
        return parts

    for one, other in zip(shards_of(out), shards_of(source), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_dtype_is_that_asked_for(make_tiny_checkpoint: Make, tmp_path: Path) -> None:
    source = make_tiny_checkpoint()
    out = converted(source, tmp_path, "bfloat16")
    config = load_model_config(out)
    assert config.dtype == "bfloat16"
    narrow = load_params(load_model_config(source, dtype="bfloat16"), source).leaves
    for one, other in zip(load_params(config, out, "orbax").leaves, narrow, strict=True):
        assert one.dtype == jnp.bfloat16
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_scales_of_the_cache_come_along(make_tiny_checkpoint: Make, tmp_path: Path) -> None:
    name = "model.layers.{}.self_attn.{}_scale"
    scales = {name.format(i, side): 0.5 + i for i in range(2) for side in "kv"}
    source = add_tensors(make_tiny_checkpoint(), scales)
    out = converted(source, tmp_path)
    config = load_model_config(source)
    want, got = load_kv_scales(config, source), load_kv_scales(config, out)
    assert want is not None and got is not None
    np.testing.assert_array_equal(got, want)
    plain = convert(str(make_tiny_checkpoint()), tmp_path / "plain", progress=silent).path
    assert load_kv_scales(config, plain) is None


@pytest.fixture(scope="module")
def good(make_tiny_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(make_tiny_checkpoint(hidden_size=96), tmp_path_factory.mktemp("good"))


def largest(path: Path) -> Path:
    return max((file for file in (path / "arrays").rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def cut(path: Path) -> None:
    file = largest(path)
    file.write_bytes(file.read_bytes()[:-100])


def garble(path: Path) -> None:
    for file in (path / "arrays").rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            file.write_bytes(bytes(byte ^ 0x5A for byte in file.read_bytes()))


def remark(path: Path, **changes: Any) -> None:
    file = path / CONVERTED_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut, r"has \d+ bytes; \d+ bytes were written"),
        (lambda path: largest(path).unlink(), r"is missing; \d+ bytes were written"),
        (garble, "convert the model again"),
        (lambda path: (path / CONVERTED_FILE).write_text("{"), "not valid JSON"),
        (lambda path: (path / CONVERTED_FILE).unlink(), "not written by `jaxserve convert`"),
        (lambda path: remark(path, format=9), "format is 9; this version reads 1"),
        (lambda path: remark(path, arrays={"x": [1]}), r"holds 1 arrays; the architecture has \d+"),
        (lambda path: remark(path, files={}), "files must be an object"),
    ],
)
def test_what_is_broken_is_refused(good: Path, tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    path = Path(shutil.copytree(good, tmp_path / "copy"))
    spoil(path)
    with pytest.raises(CheckpointError, match=message):
        load_params(load_model_config(path), path, "orbax")


def test_arrays_of_another_model_are_refused(good: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(good, tmp_path / "copy"))
    with pytest.raises(CheckpointError, match=r"array layers\.0\.\S+ has shape \[96, 128\]; expected \[96, 64\]"):
        load_params(load_model_config(path, overrides={"intermediate_size": 64}), path)


def test_nothing_is_overwritten_and_nothing_half_done_is_left(
    make_tiny_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, taken = make_tiny_checkpoint(), tmp_path / "taken"
    taken.mkdir()
    with pytest.raises(ConfigError, match="taken exists, and is not overwritten"):
        convert(str(source), taken, progress=silent)
    with pytest.raises(ConfigError, match="nowhere is not a directory"):
        convert(str(source), tmp_path / "nowhere" / "out", progress=silent)
    (source / "extra.json").symlink_to("/etc/hostname")
    with pytest.raises(CheckpointError, match="leads out of the checkpoint directory"):
        convert(str(source), tmp_path / "out", progress=silent)
    (source / "extra.json").unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1 << 30, 1 << 30, 1 << 20))
    with pytest.raises(ConfigError, match=r"has 1 MiB free; the model in float32 may need 64\.\d+ MiB"):
        convert(str(source), tmp_path / "out", progress=silent)
    assert sorted(tmp_path.iterdir()) == [taken]


def test_the_command(make_tiny_checkpoint: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = make_tiny_checkpoint(), tmp_path / "out"
    assert main(["convert", str(source), str(out), "--dtype", "float16"]) == 0
    assert "arrays of float16" in capsys.readouterr().out
    assert main(["convert", str(source), str(out)]) == 2
    assert main(["convert", str(source), str(tmp_path / "other"), "--dtype", "int8"]) == 2
    assert "float16" in capsys.readouterr().err


def test_serving_safetensors_does_not_load_tensorstore() -> None:
    code = "import sys, jaxserve.engine.core; print([name for name in ('orbax', 'tensorstore') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
