"""Prompt chunks by themselves: checked against the reference, in TFLOP/s beside the device's own matrix rate.

A case is CHUNK@CONTEXT: one row's last CHUNK queries over CONTEXT tokens of a paged pool, causal.
`cudnn` is cuDNN's causal attention through `jax.nn`, over plain arrays without pages, for whole prompts.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pallas_kernels import ragged_paged_attention

DEFAULT_CASES = ("2048@2048", "8192@8192", "32768@32768", "512@8192", "2048@30720")
_REPEATS = 7
_RUNS = 4  # of the whole program in one timed repeat
_LAYERS = 4  # in one program: each one's queries are the outputs of the one before
_MAX_ERROR = 2e-2
_CHECKED = 48  # queries, spread over the chunk


def matmul_tflops(size: int = 8192) -> float:
    """TFLOP/s of a product of two random bfloat16 matrices of size x size; the best of several."""
    left, right = (jax.random.normal(jax.random.key(i), (size, size), jnp.bfloat16) for i in range(2))
    multiply = jax.jit(lambda a, b: a @ b)
    return 2 * size**3 / min(_seconds(lambda: multiply(left, right)) for _ in range(5)) / 1e12


def _seconds(run: Callable[[], Any]) -> float:
    jax.block_until_ready(run())
    start = time.perf_counter()
    jax.block_until_ready([run() for _ in range(_RUNS)])
    return (time.perf_counter() - start) / _RUNS


def _plain(q: Array, k: Array, v: Array, positions: Array, scale: float) -> Array:
    """Attention in float32 of some queries [Q, N, H] at `positions` over keys and values [S, K, H]."""
    q_QKGH = q.astype(jnp.float32).reshape(len(q), k.shape[1], -1, k.shape[2])
    scores_KGQS = jnp.einsum("QKGH,SKH->KGQS", q_QKGH, k.astype(jnp.float32), precision="highest") * scale
    seen_QS = jnp.arange(len(k)) <= positions[:, None]
    weights_KGQS = jax.nn.softmax(jnp.where(seen_QS, scores_KGQS, -jnp.inf), axis=-1)
    return jnp.einsum("KGQS,SKH->QKGH", weights_KGQS, v.astype(jnp.float32), precision="highest").reshape(q.shape)


def measure(case: str, implementation: str, matmul: float, args: argparse.Namespace) -> dict[str, Any]:
    """The record of one case; matmul: of `matmul_tflops`.

    Raises SystemExit where the result is wrong: a wrong kernel has no speed.
    """
    chunk, context = (int(part) for part in case.split("@"))
    scale = args.head_dim**-0.5
    q = jax.random.normal(jax.random.key(9), (chunk, args.heads, args.head_dim), jnp.bfloat16)
    shape = (context, args.kv_heads, args.head_dim)
    normal = jax.jit(lambda key: jax.random.normal(key, shape, jnp.bfloat16).astype(args.pool_dtype))
    k, v = (normal(jax.random.key(i)) for i in range(2))
    attend, memory = (
        _cudnn(k, v, scale) if implementation == "cudnn" else _paged(k, v, chunk, implementation, scale, args.page_size)
    )

    checked = np.unique(np.linspace(0, chunk - 1, _CHECKED).astype(int))
    want = jax.jit(_plain, static_argnums=4)(q[checked], k, v, jnp.asarray(checked + context - chunk), scale)
    error = float(jnp.abs(jax.jit(attend)(q, *memory)[checked].astype(jnp.float32) - want).max())
    if not error <= _MAX_ERROR:
        raise SystemExit(f"{case} {implementation}: off by {error:.2e}, more than {_MAX_ERROR}")

    @jax.jit
    def program(q: Array, *memory: Array) -> Array:
        for _ in range(_LAYERS):
            q = attend(q, *memory)
        return q

    seconds = [_seconds(lambda: program(q, *memory)) / _LAYERS for _ in range(_REPEATS)]
    median = statistics.median(seconds)
    seen = chunk * (context - chunk) + chunk * (chunk + 1) // 2  # pairs of a query and a key
    tflops = 4 * args.heads * args.head_dim * seen / median / 1e12
    return {
        "benchmark": "kernels/prefill",
        "kernel": "prefill",
        "implementation": implementation,
        "case": case,
        "median_ms": round(1e3 * median, 5),
        "spread": round(max(seconds) / min(seconds), 3),
        "tflops": round(tflops, 1),
        "matmul_tflops": round(matmul, 1),
        "matmul_fraction": round(tflops / matmul, 4),
        "max_error": float(f"{error:.2e}"),
    }


_Attend = tuple[Callable[..., Array], tuple[Array, ...]]  # of queries and of what is to be given after them


def _paged(k: Array, v: Array, chunk: int, implementation: str, scale: float, page_size: int) -> _Attend:
    """The chunk's attention over a paged pool whose pages lie in random order."""
    context = len(k)
    num_pages = -(-context // page_size)
    order = jnp.asarray(np.random.default_rng(0).permutation(num_pages))
    kv_2SKH = jnp.pad(jnp.stack([k, v]), ((0, 0), (0, num_pages * page_size - context), (0, 0), (0, 0)))
    in_order_P2KZH = kv_2SKH.reshape(2, num_pages, page_size, *k.shape[1:]).transpose(1, 0, 3, 2, 4)
    pool_P2KZH = jnp.zeros_like(in_order_P2KZH).at[order].set(in_order_P2KZH)
    table_BM, lens_B = order[None].astype(jnp.int32), jnp.full(1, context, jnp.int32)
    starts, counts = jnp.asarray([0, chunk], jnp.int32), jnp.asarray([0, 1], jnp.int32)

    def attend(q: Array, *memory: Array) -> Array:
        return ragged_paged_attention(q, *memory, scale=scale, implementation=implementation)

    return attend, (pool_P2KZH, table_BM, lens_B, starts, counts)


def _cudnn(k: Array, v: Array, scale: float) -> _Attend:
    def attend(q: Array, k: Array, v: Array) -> Array:
        if len(q) != len(k):
            raise SystemExit("cudnn: only whole prompts, such as 8192@8192")
        if k.dtype != q.dtype:
            raise SystemExit(f"cudnn: no keys of {k.dtype} for queries of {q.dtype}")
        return jax.nn.dot_product_attention(
            q[None], k[None], v[None], scale=scale, is_causal=True, implementation="cudnn"
        )[0]

    return attend, (k, v)
