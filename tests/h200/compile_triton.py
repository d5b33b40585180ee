"""Compile the jax-triton kernels without a GPU, leaving what the assembler said of each.

    python compile_triton.py FOLDER

Runs in the environment that has CUDA's assembler and jax-triton (tests/h200/conftest.py starts it). Left is
ptxas.txt in a folder for each case and compute capability, "llama_90".
"""

import importlib
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from h200_cases import TRITON, TRITON_FILTERS

from pallas_kernels import ragged_paged_attention
from pallas_kernels.jax_triton import floors, ragged

PTXAS = Path(importlib.import_module("nvidia.cu13").__path__[0]) / "bin" / "ptxas"


def lower_attention(case: dict[str, Any]) -> None:
    head_dim, rows = case["head_dim"], 8
    attend = partial(
        ragged_paged_attention,
        scale=head_dim**-0.5,
        sliding_window=case["window"],
        logit_softcap=case["softcap"],
        implementation="jax_triton",
    )
    ints = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((rows, 16), (rows,), (rows + 1,), (2,))]
    q = jax.ShapeDtypeStruct((case["num_tokens"], case["heads"], head_dim), case["dtype"])
    pool = jax.ShapeDtypeStruct((128, 2, case["kv_heads"], case["page_size"], head_dim), case["pool_dtype"])
    jax.jit(attend).trace(q, pool, *ints).lower(lowering_platforms=("cuda",))


def lower_filters(case: dict[str, Any]) -> None:
    rows = [jax.ShapeDtypeStruct((8,), dtype) for dtype in (jnp.int32, jnp.int32, jnp.float32)]
    scaled = jax.ShapeDtypeStruct((8, case["vocab"]), jnp.float32)
    jax.jit(floors.raise_floors).trace(scaled, *rows).lower(lowering_platforms=("cuda",))


def assemble(folder: Path, capability: int, kernels: set[Path]) -> None:
    """Leave the report on kernels."""
    folder.mkdir(parents=True)
    target = f"sm_{capability}a" if capability == 90 else f"sm_{capability}"
    said = ""
    for ptx in sorted(kernels):
        command = [PTXAS, "-v", f"-arch={target}", ptx, "-o", "/dev/null"]
        said += subprocess.run(command, check=True, capture_output=True, text=True).stderr
    (folder / "ptxas.txt").write_text(said)


def main(out: Path, dumps: Path) -> None:
    os.environ["JAX_TRITON_DUMP_DIR"] = str(dumps)  # read when jax-triton is imported, by the first kernel
    cases = [(lower_attention, name, case) for name, case in TRITON.items()]
    cases += [(lower_filters, name, case) for name, case in TRITON_FILTERS.items()]
    known: set[Path] = set()
    for lower, name, case in cases:
        for capability in case["capabilities"]:
            ragged.compute_capability = floors.compute_capability = lambda found=capability: found
            jax.clear_caches()
            lower(case)
            dumped = set(dumps.glob("*/*.ptx"))
            assemble(out / f"{name}_{capability}", capability, dumped - known)  # not what an earlier case had too
            known = dumped


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as dumps:
        main(Path(sys.argv[1]), Path(dumps))
