"""A mixture of experts over 2 and 4 devices, each with a part of every expert or with whole experts, against one."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxserve.core.checkpoint import load_model_config
from jaxserve.core.errors import ConfigError
from jaxserve.models.shard import shard_of, sizes_that_divide

SIZES: dict[str, Any] = dict(num_experts=8, num_experts_per_tok=3, moe_intermediate_size=32)
QWEN3_MOE: dict[str, Any] = dict(architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", **SIZES)


def main(checkpoint: str, out: str) -> None:
    """In a process of four devices: logits of one sequence, with padding behind it, by way of cutting the model."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import PartitionSpec

    from jaxserve.layers.dense_attention import dense_causal_attend
    from jaxserve.models.weights import load_params
    from jaxserve.runner.layout import Layout, leaf_specs
    from sharding.mesh import MeshShape, make_mesh

    token_ids_T = jnp.arange(24) * 19 % 500
    rope_lens_T = jnp.where(jnp.arange(24) < 20, 24, 0)

    def logits(size: int, expert_parallel: bool, load_format: str = "auto") -> np.ndarray:
        config = replace(load_model_config(Path(checkpoint)), expert_parallel=expert_parallel)
        layout = Layout() if size == 1 else Layout(make_mesh(MeshShape(tensor=size), jax.devices()))
        loaded = load_params(config, Path(checkpoint), load_format, 5, layout.shards, layout.place)
        share = shard_of(config, size)

        def forward(leaves: list[jax.Array]) -> jax.Array:
            model = loaded.merge(leaves)
            return model.logits(model(token_ids_T, jnp.arange(24), rope_lens_T, dense_causal_attend(share)))

        specs = PartitionSpec(None, "tensor")
        whole_TV = jax.jit(layout.over_devices(forward, (leaf_specs(loaded),), specs))(loaded.leaves)
        return np.asarray(whole_TV)[:20, : config.vocab_size]

    whole = {f: logits(1, False, f) for f in ("auto", "dummy")}
    cases = ((2, True, "auto"), (4, False, "auto"), (4, True, "auto"), (4, True, "dummy"))
    found = {"-".join(map(str, case)): np.abs(logits(*case) - whole[case[2]]).max() for case in cases}
    np.savez(out, spread=np.std(whole["auto"]), **found)


def test_every_cut_gives_the_logits_of_one_device(make_tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    path = make_tiny_checkpoint(**QWEN3_MOE, mlp_only_layers=[0])
    flags = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, __file__, str(path), str(tmp_path / "out.npz")]
    done = subprocess.run(command, check=False, env=flags, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = dict(np.load(tmp_path / "out.npz"))
    assert found.pop("spread") > 0.5
    assert len(found) == 4 and max(found.values()) < 1e-4, found


def test_experts_that_cannot_be_dealt_out_are_named(make_tiny_checkpoint: Callable[..., Path]) -> None:
    sizes = {**QWEN3_MOE, "num_experts": 6, "num_attention_heads": 12, "num_key_value_heads": 12}
    config = replace(load_model_config(make_tiny_checkpoint(**sizes)), expert_parallel=True)
    assert sizes_that_divide(config) == [1, 2, 3, 6]
    assert sizes_that_divide(replace(config, expert_parallel=False)) == [1, 2, 4]
    with pytest.raises(ConfigError, match=r"size=4: the model's 6 experts cannot be cut .* takes 1, 2, 3, 6\."):
        shard_of(config, 4)
    with pytest.raises(ConfigError, match=r"size=3: the model's moe_intermediate_size=32 .* takes 1, 2, 4\."):
        shard_of(replace(config, expert_parallel=False), 3)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
