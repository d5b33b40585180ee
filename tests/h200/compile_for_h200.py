"""Compile cases for an H200, leaving what the compilers said in a folder a case.

    python compile_for_h200.py steps|kernels|cuts|experts|simulated FOLDER

Runs in the environment that has XLA's CUDA compiler (tests/h200/conftest.py starts it). Left are hlo.txt,
the optimised program; memory.json; thunks.txt, what XLA will launch; ptxas.txt, the assembler's report on
each kernel of ours.
"""

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from h200_cases import (
    CUT_BUCKET,
    CUTS,
    EXPERT_STEPS,
    EXPERTS,
    KERNELS,
    LLAMA_8B,
    MEMORY_BYTES,
    STEPS,
    llama_8b,
    llama_70b,
)

from jaxserve import cli
from jaxserve.batch.buckets import BucketGrid
from jaxserve.layers.moe import MixtureOfExperts
from jaxserve.models.weights import abstract_params
from jaxserve.runner.bundle import serialize
from jaxserve.runner.layout import Layout
from jaxserve.runner.lowering import compiler_options, lower_step, specs
from jaxserve.runner.programs import Program, programs_of, state_shapes
from jaxserve.runner.step import initial_state
from pallas_kernels import ragged_paged_attention
from sharding.mesh import MeshShape, make_mesh
from sharding.targets import target_devices

_MEMORY_FIELDS = ("argument", "output", "alias", "temp")


@contextlib.contextmanager
def stdout_into(path: Path) -> Generator[None]:
    """What compiled code prints too: the file descriptor itself goes there."""
    sys.stdout.flush()
    kept = os.dup(1)
    with path.open("wb") as file:
        os.dup2(file.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def leave(folder: Path, lowered: jax.stages.Lowered, num_tokens: int = 1, program: Program | None = None) -> None:
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as dumps:
        options = compiler_options("gpu", num_tokens) | {"xla_dump_to": dumps, "xla_dump_hlo_as_text": True}
        with stdout_into(folder / "ptxas.txt"):
            compiled = lowered.compile(options)
        # Written after the passes only where they changed something, such as made a command buffer.
        thunks = [
            *Path(dumps).glob("*.thunk_sequence_after_thunk_passes.txt"),
            *Path(dumps).glob("*.thunk_sequence.txt"),
        ][0]
        (folder / "thunks.txt").write_bytes(thunks.read_bytes())
    if program is not None:  # as `jaxserve compile` keeps it; its trees are checked there
        (folder / "serialized").write_bytes(serialize(program, compiled))
    (folder / "hlo.txt").write_text(compiled.as_text() or "")
    memory: Any = compiled.memory_analysis()
    (folder / "memory.json").write_text(
        json.dumps({name: getattr(memory, f"{name}_size_in_bytes") for name in _MEMORY_FIELDS})
    )


def lower_kernel(placement: jax.sharding.Sharding, case: dict[str, Any]) -> jax.stages.Lowered:
    """Attention of a bucket over a pool of a thousand pages."""
    rows, page_size, head_dim = case["num_rows"], case["page_size"], case["head_dim"]

    def spec(shape: tuple[int, ...], dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=placement)

    attend = partial(
        ragged_paged_attention,
        scale=head_dim**-0.5,
        sliding_window=case["window"],
        logit_softcap=case["softcap"],
        implementation="mosaic_gpu",
    )
    return jax.jit(attend).lower(
        spec((case["num_tokens"], case["heads"], head_dim), case["dtype"]),
        spec((1000, 2, case["kv_heads"], page_size, head_dim), case["pool_dtype"] or case["dtype"]),
        spec((rows, 8192 // page_size)),
        spec((rows,)),
        spec((rows + 1,)),
        spec((2,)),
    )


def lower_cut(num_hosts: int, num_each: int) -> jax.stages.Lowered:
    """A decode step of a 70B model's widths over so many devices of so many hosts."""
    config = llama_70b(num_hosts * num_each)
    devices = target_devices("h200", num_hosts=num_hosts, devices_per_host=num_each, memory_bytes=MEMORY_BYTES)
    layout = Layout(make_mesh(MeshShape(tensor=len(devices)), devices))
    model = abstract_params(config.model, layout.shards)
    state = state_shapes(config, layout, has_kv_scales=False)
    return lower_step(config, model, CUT_BUCKET, state, layout=layout)


def lower_experts(placement: jax.sharding.Sharding, num_tokens: int) -> jax.stages.Lowered:
    """A mixture of experts in bfloat16."""
    layer = nnx.eval_shape(lambda: MixtureOfExperts(**EXPERTS, dtype=jnp.dtype(jnp.bfloat16)))
    graphdef, state = nnx.split(layer)
    x_TD = jax.ShapeDtypeStruct((num_tokens, EXPERTS["size"]), jnp.bfloat16)
    inputs = specs((state, x_TD, jax.ShapeDtypeStruct((num_tokens,), jnp.bool_)), placement)
    return jax.jit(lambda state, x_TD, is_token_T: nnx.merge(graphdef, state)(x_TD, is_token_T)).lower(*inputs)


def main(group: str, out: Path) -> None:
    placement = jax.sharding.SingleDeviceSharding(target_devices("h200", memory_bytes=MEMORY_BYTES)[0])
    if group == "kernels":
        for name, case in KERNELS.items():
            leave(out / name, lower_kernel(placement, case))
    elif group == "cuts":
        for name, (num_hosts, num_each) in CUTS.items():
            leave(out / name, lower_cut(num_hosts, num_each), CUT_BUCKET.num_tokens)
    elif group == "experts":
        for name, num_tokens in EXPERT_STEPS.items():
            leave(out / name, lower_experts(placement, num_tokens), num_tokens)
    elif group == "simulated":
        (out / "config.json").write_text(json.dumps(LLAMA_8B | {"num_hidden_layers": 1, "model_type": "llama"}))
        simulate = ["--simulate", "--tensor-parallel-sizes", "2", "16", "--output-json", str(out / "simulated.json")]
        assert cli.main(["bench", "multihost", "--model", str(out), *simulate]) == 0
    else:
        config = llama_8b()
        model = abstract_params(config.model)
        state = jax.eval_shape(lambda: initial_state(config))
        programs = programs_of(config, model, state, BucketGrid((), tuple(STEPS.values())), halves=False)
        for (name, bucket), program in zip(STEPS.items(), reversed(programs[: len(STEPS)]), strict=True):
            leave(out / name, lower_step(config, model, bucket, state, placement), bucket.num_tokens, program)
        begin = jax.jit(lambda: initial_state(config), out_shardings=placement)
        leave(out / "initial_state", begin.lower())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
