"""A bundle starts an engine without compiling, and is refused where anything does not fit."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from engine_driver import Driver, Wish, make_engine
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from jaxserve.core.config import EngineArgs
from jaxserve.core.errors import ConfigError
from jaxserve.core.params import SamplingParams
from jaxserve.models.weights import abstract_params
from jaxserve.runner.bundle import Bundle, serialize, write_bundle
from jaxserve.runner.compile_cache import disable_compile_cache
from jaxserve.runner.compiling import compile_program
from jaxserve.runner.device import Device
from jaxserve.runner.layout import Layout
from jaxserve.runner.programs import programs_of, state_shapes
from jaxserve.runner.startup import configure
from jaxserve.runner.step import initial_state

ROOT = Path(__file__).parents[2]
SHAPE = {"max_num_seqs": 4, "max_num_batched_tokens": 32, "page_size": 4, "kv_cache_memory_bytes": 1 << 20}
FLAGS = [word for name, value in SHAPE.items() for word in (f"--{name.replace('_', '-')}", str(value))]
WISHES = [
    Wish(list(range(5, 40)), SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)),
    Wish([7, 8, 9], SamplingParams(temperature=0.9, top_k=40, seed=3, max_tokens=12, ignore_eos=True, logprobs=3)),
    Wish([9], SamplingParams(temperature=0.0, max_tokens=4, logit_bias={17: 100.0}, ignore_eos=True), arrives=2),
]


def run_compile(
    model: Path, output: Path, *flags: str, cache: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    """`jaxserve compile` in a process of its own, as it switches JAX's cache off."""
    return subprocess.run(
        [sys.executable, "-m", "jaxserve.cli", "compile", str(model), "-o", str(output), *flags],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(cache or "")},
    )


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint, tmp_path_factory) -> Path:
    path, cache = tmp_path_factory.mktemp("bundle") / "tiny.bundle", tmp_path_factory.mktemp("cache")
    done = run_compile(tiny_checkpoint, path, *FLAGS, cache=cache)
    assert done.returncode == 0, done.stderr
    assert list(cache.iterdir()) == [], "what comes from JAX's cache would not run"
    assert Bundle(path).fingerprint in done.stdout
    return path


def start(model: Path, bundle: Path, **args):
    defaults = dict(max_num_seqs=None, max_num_batched_tokens=None, page_size=None)
    return make_engine(model, bundle=str(bundle), compilation_cache_dir="off", **(defaults | args))


def rewritten(bundle: Path, path: Path, key: dict[str, Any], programs: dict[str, bytes]) -> Path:
    """The bundle with another key or other programs, and a manifest that is right about them."""
    with zipfile.ZipFile(bundle) as archive:
        manifest = json.loads(archive.read("manifest.json"))
        kept = {name: archive.read(f"programs/{name}") for name in manifest["programs"]}
    write_bundle(path, manifest["key"] | key, kept | programs)
    return path


def with_member(bundle: Path, path: Path, name: str, content: bytes | None) -> Path:
    """The bundle with one member of the archive replaced, or left out."""
    with zipfile.ZipFile(bundle) as old, zipfile.ZipFile(path, "w") as new:
        for member in old.namelist():
            if member != name:
                new.writestr(member, old.read(member))
            elif content is not None:
                new.writestr(member, content)
    return path


def test_an_engine_from_a_bundle_compiles_nothing_and_says_the_same(tiny_checkpoint, bundle):
    core = start(tiny_checkpoint, bundle)
    assert core.info.num_compilations == 0
    assert {name: getattr(core.info, name) for name in ("max_num_seqs", "max_num_batched_tokens", "page_size")} == {
        name: SHAPE[name] for name in ("max_num_seqs", "max_num_batched_tokens", "page_size")
    }
    compiled = make_engine(tiny_checkpoint, **SHAPE)
    assert compiled.info.num_pages == core.info.num_pages and compiled.info.num_compilations > 0
    ours, theirs = Driver(core).run(WISHES), Driver(compiled).run(WISHES)
    assert [answer.token_ids for answer in ours] == [answer.token_ids for answer in theirs]
    assert [answer.logprobs for answer in ours] == [answer.logprobs for answer in theirs]
    assert core.stats().num_compilations_after_warmup == 0


@pytest.mark.parametrize(
    ("args", "name", "theirs", "ours"),
    [
        ({"max_num_seqs": 8}, "max_num_seqs", "4", "8"),
        ({"max_num_batched_tokens": 64}, "max_num_batched_tokens", "32", "64"),
        ({"max_model_len": 100}, "max_model_len", "256", "100"),
        ({"page_size": 8}, "page_size", "4", "8"),
        ({"kv_cache_memory_bytes": 1 << 19}, "num_pages", "512", "256"),
        ({"kv_cache_dtype": "bfloat16"}, "kv_cache_dtype", '"float32"', '"bfloat16"'),
        ({"max_logprobs": 5}, "max_logprobs", "20", "5"),
        ({"dtype": "bfloat16"}, "model.dtype", '"float32"', '"bfloat16"'),
    ],
)
def test_another_engine_is_named_with_both_values(tiny_checkpoint, bundle, args, name, theirs, ours):
    with pytest.raises(ConfigError) as found:
        start(tiny_checkpoint, bundle, **args)
    message = str(found.value)
    assert f"another {name}: {theirs} in the bundle, {ours} here" in message and "jaxserve compile" in message


def test_another_model_is_named(make_tiny_checkpoint, bundle):
    with pytest.raises(ConfigError, match=r"another model\.num_layers: 2 in the bundle, 3 here"):
        start(make_tiny_checkpoint(num_hidden_layers=3), bundle)


@pytest.mark.parametrize(
    "name", ["jax version", "processor", "device kind", "platform version", "digest of jaxserve's sources", "XLA_FLAGS"]
)
def test_another_machine_is_named(tiny_checkpoint, bundle, tmp_path, name):
    other = rewritten(bundle, tmp_path / "other", {name: "elsewhere"}, {})
    with pytest.raises(ConfigError, match=f'another {name}: "elsewhere" in the bundle'):
        start(tiny_checkpoint, other)


def test_a_pool_that_does_not_fit_is_named(tiny_checkpoint, bundle):
    small = Device("cpu", "cpu", memory_bytes=1_000_000)
    args = EngineArgs(model=str(tiny_checkpoint), bundle=str(bundle))
    with pytest.raises(ConfigError, match="KV pool of 512 pages of 4 tokens, which is more than there is room for"):
        configure(args, small, lambda line: None)


def test_damage_is_found(tiny_checkpoint, bundle, tmp_path):
    content = bundle.read_bytes()
    with zipfile.ZipFile(bundle) as archive:
        manifest = archive.read("manifest.json")
        program = archive.getinfo("programs/load_row")
    flipped = bytearray(content)
    flipped[program.header_offset + 200] ^= 1
    cases = {
        "empty": b"",
        "text": b"hello",
        "truncated": content[: len(content) // 2],
        "headless": content[1000:],
        "flipped": bytes(flipped),
        "other": b"PK\x05\x06" + bytes(18),  # a zip archive with nothing in it
        "manifest": content.replace(b'"max_num_seqs": 4', b'"max_num_seqs": 8', 1),
    }
    for name, damaged in cases.items():
        path = tmp_path / name
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"is no bundle|damaged"):
            start(tiny_checkpoint, path)
    changed = json.loads(manifest)
    del changed["programs"]["load_row"]
    lacking = with_member(bundle, tmp_path / "lacking", "manifest.json", json.dumps(changed).encode())
    with pytest.raises(ConfigError, match="lacks the program load_row"):
        start(tiny_checkpoint, lacking)
    gone = with_member(bundle, tmp_path / "gone", "programs/load_row", None)
    with pytest.raises(ConfigError, match="damaged at load_row"):
        start(tiny_checkpoint, gone)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        start(tiny_checkpoint, tmp_path / "nowhere")
    newer = with_member(
        bundle, tmp_path / "newer", "manifest.json", json.dumps(json.loads(manifest) | {"format": 9}).encode()
    )
    strange = with_member(bundle, tmp_path / "strange", "manifest.json", b'{"format": 1, "key": 3, "programs": [4]}')
    with pytest.raises(ConfigError, match="is no bundle"):
        start(tiny_checkpoint, strange)
    with pytest.raises(ConfigError, match="format 9, this version reads 1"):
        start(tiny_checkpoint, newer)


class Marker:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_changed_program_is_never_unpickled(tiny_checkpoint, bundle, tmp_path):
    marker = tmp_path / "was-here"
    evil = pickle.dumps(Marker(marker))
    with pytest.raises(ConfigError, match="load_row is not what its manifest says"):
        start(tiny_checkpoint, with_member(bundle, tmp_path / "evil", "programs/load_row", evil))
    # Somebody who may write the manifest too is stopped by its pinned digest alone, before anything is loaded.
    whole = rewritten(bundle, tmp_path / "whole", {}, {"load_row": evil})
    with pytest.raises(ConfigError, match="is not that of"):
        start(tiny_checkpoint, whole, bundle_sha256=Bundle(bundle).fingerprint)
    assert not marker.exists()
    with pytest.raises(ConfigError, match="does not load"):
        start(tiny_checkpoint, whole)
    assert marker.exists(), "or the test above would pass for another reason"


def test_the_pinned_fingerprint_is_the_digest_of_the_manifest(tiny_checkpoint, bundle):
    with zipfile.ZipFile(bundle) as archive:
        fingerprint = hashlib.sha256(archive.read("manifest.json")).hexdigest()
    assert start(tiny_checkpoint, bundle, bundle_sha256=fingerprint.upper()).info.num_compilations == 0


def test_whole_steps_as_a_gpu_has_them_come_back_too(tiny_checkpoint):
    core = make_engine(tiny_checkpoint, **SHAPE)
    config, bucket = core.config, core.runner._steps.grid.decode[1]
    model, state = abstract_params(config.model), state_shapes(config, Layout(), has_kv_scales=False)
    programs = programs_of(config, model, state, core.runner._steps.grid, halves=False)
    program = next(one for one in programs if one.name == "step-2x2")
    disable_compile_cache()  # or the step may not run: its program was compiled by an earlier run of this test
    try:
        content = serialize(program, compile_program(program))
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
        compilation_cache.reset_cache()
    step = serialize_executable.deserialize_and_load(content, program.in_tree, program.out_tree)
    vector = core.runner._builder.empty_step(bucket).vector
    outputs = [run(core.runner._leaves, initial_state(config), vector) for run in (step, core.runner._steps[bucket])]
    assert jax.tree.structure(outputs[0]) == jax.tree.structure(outputs[1])
    for one, other in zip(*map(jax.tree.leaves, outputs), strict=True):
        np.testing.assert_array_equal(one, other)


def test_compile_says_what_is_wrong(tiny_checkpoint, tmp_path):
    done = run_compile(tiny_checkpoint, tmp_path / "x", "--max-num-seqs", "0")
    assert done.returncode == 2 and "max_num_seqs=0" in done.stderr
    done = run_compile(tiny_checkpoint, tmp_path / "x", "--bundle", "y")
    assert done.returncode == 2 and "--output" in done.stderr
    assert not (tmp_path / "x").exists()
