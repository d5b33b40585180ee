"""Kernels by themselves: checked against the reference, timed over rotating pools, beside the device's own copy rate.

python -m jaxserve.bench.kernels --out decode.json --case 256x1024 --case 16x2048r
python -m jaxserve.bench.kernels --kernel sampling --implementation jax_triton --implementation xla

A decode case is BATCHxCONTEXT, one query a row; with an r at the end lengths are uniform between half the
context and the whole. A case CHUNK@CONTEXT is of prompt chunks (`prefill_kernels.py`). Each prints one
record (docs/performance.md says what stands in it). A run goes through several pools one after another
inside one program, so that no cache holds what the next reads; the time of a layer holds everything a
step would launch for it. A sampling case is BATCHxVOCABULARY: the tokens that top-k and top-p keep,
counted; its GB/s are those of the logits read once.
"""

import argparse
import datetime
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxserve.bench import prefill_kernels, record, report, tune_kernels
from jaxserve.sampling.filters import kept_together, kept_tokens
from pallas_kernels import attention_workspace, ragged_paged_attention
from pallas_kernels.reference import plain_paged_attention

DEFAULT_CASES = (
    *("1x32768", "4x32768", "16x2048", "16x8192", "32x4096", "64x2048", "128x1024", "128x2048", "256x1024"),
    *("16x2048r", "32x8192r", "64x2048r", "128x2048r", "256x1024r"),
)
ALL_CASES = (*DEFAULT_CASES, *prefill_kernels.DEFAULT_CASES)
CPU_CASES = ("1x1024", "8x256", "8x256r", "256@256")
SAMPLING_CASES = ("1x128256", "16x128256", "64x128256", "256x128256")
_CPU_MATRIX_SIDE = 1024
_POOL_BYTES = 12 << 30  # of all layers together
_SAMPLING_LAYERS = 6
_REPEATS = 7
_RUNS = 12  # of the whole program in one timed repeat: the host's part is hidden behind the device's
_MAX_ERROR = 2e-2
_MAX_MASS_ERROR = 1e-5  # of kept probability, against the XLA version


def parser(prog: str = "python -m jaxserve.bench.kernels") -> argparse.ArgumentParser:
    """Command line of the benchmark."""
    p = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kernel", choices=("attention", "sampling"), default="attention")
    p.add_argument(
        "--case",
        action="append",
        help=f"BATCHxCONTEXT[r] or CHUNK@CONTEXT, default {' '.join(ALL_CASES)}; "
        f"BATCHxVOCABULARY of sampling, default {' '.join(SAMPLING_CASES)}",
    )
    p.add_argument(
        "--implementation",
        action="append",
        choices=("mosaic_gpu", "jax_triton", "xla", "cudnn"),
        help="cudnn: of CHUNK@CONTEXT only; default: mosaic_gpu, for sampling jax_triton, on a CPU xla",
    )
    p.add_argument("--heads", type=int, default=32, help="query heads")
    p.add_argument("--kv-heads", type=int, default=8)
    p.add_argument("--head-dim", type=int, default=128)
    p.add_argument("--page-size", type=int, default=64)
    p.add_argument("--pool-dtype", default="bfloat16", help="or float8_e4m3fn, float8_e5m2; queries are bfloat16")
    p.add_argument("--top-k", type=int, default=50, help="of sampling; 0: none")
    p.add_argument("--top-p", type=float, default=0.9, help="of sampling; 1: none")
    p.add_argument(
        "--layers",
        type=int,
        default=None,
        help=f"pools gone through in one program; default: up to 32, for sampling {_SAMPLING_LAYERS} arrays of logits",
    )
    p.add_argument("--commit", default=None, help="of this source, where it is no checkout")
    p.add_argument("--out", type=Path, default=None, help="append the records to this file, a line each")
    p.add_argument(
        "--tune",
        type=Path,
        metavar="FOLDER",
        help="time every shape of the decode kernel and write the best into the device's table there "
        f"(pallas_kernels/tables is what the engine reads); cases: {' '.join(tune_kernels.CASES)}",
    )
    return p


def copy_gbps(num_bytes: int = 2 << 30) -> float:
    """GB/s of a device-to-device copy of random data, bytes read plus bytes written; the best of several."""
    source = jax.random.bits(jax.random.key(0), (num_bytes // 4,), jnp.uint32)
    copy = jax.jit(lambda x: x ^ jnp.uint32(1))
    seconds = min(_timed(lambda: [copy(source) for _ in range(4)]) for _ in range(5)) / 4
    return 2 * num_bytes / seconds / 1e9


def _timed(run: Callable[[], Any]) -> float:
    jax.block_until_ready(run())
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def make_inputs(case: str, args: argparse.Namespace) -> tuple[Array, list[Array], Array, Array]:
    """Queries, pools, a fragmented page table and context lengths of one case."""
    batch, context = (int(part) for part in case.rstrip("r").split("x"))
    rng = np.random.default_rng(0)
    lens = rng.integers(context // 2, context + 1, batch) if case.endswith("r") else np.full(batch, context)
    columns = -(-context // args.page_size)
    shape = (batch * columns, 2, args.kv_heads, args.page_size, args.head_dim)
    # As many layers share a step's plan as in a large model, where they fit.
    pool_dtype = jnp.dtype(args.pool_dtype)
    num_layers = args.layers or max(4, min(32, _POOL_BYTES // (pool_dtype.itemsize * math.prod(shape))))
    normal = jax.jit(lambda key: jax.random.normal(key, shape, jnp.bfloat16).astype(pool_dtype))
    pools = [normal(jax.random.key(layer, impl="rbg")) for layer in range(num_layers)]
    table = jnp.asarray(rng.permutation(shape[0]).reshape(batch, columns).astype(np.int32))
    q = jax.random.normal(jax.random.key(99), (batch, args.heads, args.head_dim), jnp.bfloat16)
    return q, pools, table, jnp.asarray(lens, jnp.int32)


def largest_error(out: Array, q: Array, pool: Array, table: Array, lens: Array, scale: float) -> float:
    """Against the plain definition in float32, over the first and last rows."""
    one = jax.jit(
        lambda q, pool, table, lens: plain_paged_attention(
            q.astype(jnp.float32), pool, table, lens, jnp.arange(2), jnp.ones(2, jnp.int32),
            scale=scale, sliding_window=None, logit_softcap=None,
        )
    )  # fmt: skip
    errors: list[float] = []
    for row in sorted({0, 1, len(lens) // 2, len(lens) - 1} & set(range(len(lens)))):
        pages = table[row]  # the row's own pages alone: the reference widens the whole pool
        want = one(q[row : row + 1], pool[pages], jnp.arange(len(pages))[None], lens[row : row + 1])
        errors.append(float(jnp.abs(out[row : row + 1].astype(jnp.float32) - want).max()))
    return max(errors)


def measure(case: str, implementation: str, copy: float, args: argparse.Namespace) -> dict[str, Any]:
    """The record of one case. Raises SystemExit where the result is wrong: a wrong kernel has no speed."""
    q, pools, table, lens = make_inputs(case, args)
    scale = args.head_dim**-0.5
    starts, counts = jnp.arange(len(lens) + 1), jnp.full(2, len(lens), jnp.int32)

    def attend(q: Array, pool: Array, workspace: jax.Ref | None = None) -> Array:
        return ragged_paged_attention(
            q, pool, table, lens, starts, counts, scale=scale, implementation=implementation, workspace=workspace
        )

    @jax.jit
    def program(q: Array, pools: list[Array]) -> Array:
        workspace = attention_workspace()
        for pool in pools:
            q = attend(q, pool, workspace)
        return q

    error = largest_error(jax.jit(attend)(q, pools[0]), q, pools[0], table, lens, scale)
    if not error <= _MAX_ERROR:
        raise SystemExit(f"{case} {implementation}: off by {error:.2e}, more than {_MAX_ERROR}")
    num_bytes = int(lens.sum()) * 2 * args.kv_heads * args.head_dim * pools[0].dtype.itemsize
    speed = _speed(lambda: program(q, pools), len(pools), num_bytes, copy)
    names = {"benchmark": "kernels/decode", "kernel": "decode", "implementation": implementation, "case": case}
    return names | speed | {"max_error": float(f"{error:.2e}")}


def measure_sampling(case: str, implementation: str, copy: float, args: argparse.Namespace) -> dict[str, Any]:
    """The record of one case of top-k and top-p over normal logits (standard deviation 3)."""
    batch, vocab = (int(part) for part in case.split("x"))
    normal = jax.jit(lambda key: 3 * jax.random.normal(key, (batch, vocab), jnp.float32))
    keys = [jax.random.key(i, impl="rbg") for i in range(args.layers or _SAMPLING_LAYERS)]
    scaled = [x - x.max(-1, keepdims=True) for x in map(normal, keys)]
    rows = (jnp.full(batch, args.top_k), jnp.full(batch, args.top_p, jnp.float32), jnp.zeros(batch))

    @jax.jit
    def program(scaled: list[Array]) -> list[Array]:
        return [kept_tokens(x, *rows, implementation=implementation).sum(-1) for x in scaled]

    @jax.jit
    def mass_between(x: Array) -> Array:
        differs = kept_tokens(x, *rows, implementation=implementation) != kept_together(x, *rows)
        return jnp.where(differs, jax.nn.softmax(x, axis=-1), 0).sum(-1).max()

    error = float(mass_between(scaled[0]))
    if not error <= _MAX_MASS_ERROR:
        raise SystemExit(f"{case} {implementation}: off by {error:.2e} of probability, more than {_MAX_MASS_ERROR}")
    speed = _speed(lambda: program(scaled), len(scaled), scaled[0].nbytes, copy)
    filters = {"top_k": args.top_k, "top_p": args.top_p}
    names = {"benchmark": "kernels/sampling", "kernel": "sampling", "implementation": implementation, "case": case}
    return names | filters | speed | {"max_error": float(f"{error:.2e}")}


def _speed(run: Callable[[], Any], num_parts: int, num_bytes: int, copy: float) -> dict[str, Any]:
    """Time and GB/s of a part of the program, which goes through num_parts of num_bytes each."""
    jax.block_until_ready(run())
    seconds = [_timed(lambda: [run() for _ in range(_RUNS)]) / _RUNS / num_parts for _ in range(_REPEATS)]
    median = statistics.median(seconds)
    gbps = num_bytes / median / 1e9
    return {
        "layers": num_parts,
        "median_ms": round(1e3 * median, 5),
        "spread": round(max(seconds) / min(seconds), 3),
        "gbps": round(gbps, 1),
        "copy_gbps": round(copy, 1),
        "bandwidth_fraction": round(gbps / copy, 4),
    }


def default_cases(is_sampling: bool, is_cpu: bool) -> Sequence[str]:
    """What is measured where no case is named; on a CPU what takes seconds."""
    if is_sampling:
        return SAMPLING_CASES[:1] if is_cpu else SAMPLING_CASES
    return CPU_CASES if is_cpu else ALL_CASES


def main(argv: Sequence[str] | None = None, prog: str = "python -m jaxserve.bench.kernels") -> None:
    """Entry point. On a CPU the default cases and the arrays of the two rates are small."""
    args = parser(prog).parse_args(argv)
    is_cpu = jax.default_backend() == "cpu"
    device = record.cpu_name() if is_cpu else jax.devices()[0].device_kind
    is_sampling = args.kernel == "sampling"
    cases = args.case or default_cases(is_sampling, is_cpu)
    implementations = args.implementation or ["xla" if is_cpu else "jax_triton" if is_sampling else "mosaic_gpu"]
    if "cudnn" in implementations and not all("@" in case for case in cases):
        raise SystemExit("cudnn: of prompt chunks only, such as --case 8192@8192")
    shape = {name: getattr(args, name) for name in ("heads", "kv_heads", "head_dim", "page_size")}
    base = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "device": device,
        "commit": args.commit or record.commit(),
        "command": report.command("kernels", sys.argv[1:] if argv is None else argv),
        "versions": record.versions("jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin", "jax-triton", "triton"),
    } | ({"dtype": "float32"} if is_sampling else {"dtype": "bfloat16", "pool_dtype": args.pool_dtype, "shape": shape})
    copy = record.calibrate()["copy_gbps"] if is_cpu else copy_gbps()  # XLA's copy on a CPU pays for fresh pages
    matmul = prefill_kernels.matmul_tflops(_CPU_MATRIX_SIDE) if is_cpu else prefill_kernels.matmul_tflops()
    print(f"{device}: copies at {copy:.4g} GB/s, multiplies matrices at {matmul:.3g} TFLOP/s", flush=True)
    if args.tune is not None:
        if is_cpu or is_sampling or implementations != ["mosaic_gpu"]:
            raise SystemExit("--tune: only attention by mosaic_gpu has a table, and it needs its GPU")
        itemsize = jnp.dtype(args.pool_dtype).itemsize
        found = tune_kernels.tune(lambda case: measure(case, "mosaic_gpu", copy, args), args, itemsize, args.tune)
        _keep(base | {"benchmark": "kernels/tuning", "kernel": "decode", "copy_gbps": round(copy, 1)} | found, args.out)
        return
    for implementation in implementations:
        for case in cases:
            if is_sampling:
                found = measure_sampling(case, implementation, copy, args)
            elif "@" in case:
                found = prefill_kernels.measure(case, implementation, matmul, args)
            else:
                found = measure(case, implementation, copy, args)
            print(json.dumps(found), flush=True)
            _keep(base | found, args.out)


def _keep(line: dict[str, Any], out: Path | None) -> None:
    if out is not None:
        with out.open("a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
