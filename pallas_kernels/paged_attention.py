"""Ragged paged attention: the contract, its checks and the choice of implementation.

One call serves a step's whole mix of decode tokens and prompt chunks. Queries are packed without
gaps; row b owns queries [query_starts[b], query_starts[b + 1]) and attends to the first
`context_lens[b]` tokens of the pages in its line of the page table, causally: its last query sits at
position `context_lens[b] - 1`.
"""

import logging
from collections.abc import Callable
from functools import lru_cache

import jax
from jaxtyping import Array, Float, Int

from pallas_kernels.jax_triton.door import missing, missing_on
from pallas_kernels.jax_triton.ragged import triton_paged_attention
from pallas_kernels.jax_triton.ragged import unsupported as unsupported_by_triton
from pallas_kernels.mosaic_gpu.ragged import hopper_paged_attention
from pallas_kernels.mosaic_gpu.ragged import unsupported as unsupported_by_hopper
from pallas_kernels.reference import plain_paged_attention
from pallas_kernels.xla_attention import tiled_paged_attention

_IMPLEMENTATIONS: dict[str, Callable[..., Array]] = {
    "reference": plain_paged_attention,
    "xla": tiled_paged_attention,
    "mosaic_gpu": hopper_paged_attention,
    "jax_triton": triton_paged_attention,
}
_UNSUPPORTED: dict[str, Callable[[Array, Array], str | None]] = {
    "mosaic_gpu": unsupported_by_hopper,
    "jax_triton": unsupported_by_triton,
}
_log = logging.getLogger(__name__)


def ragged_paged_attention(
    q_TNH: Float[Array, "T N H"],
    pool_P2KZH: Float[Array, "P 2 K Z H"],
    page_table_BM: Int[Array, "B M"],
    context_lens_B: Int[Array, " B"],
    query_starts: Int[Array, " B+1"],
    row_counts: Int[Array, " 2"],
    *,
    scale: float,
    sliding_window: int | None = None,
    logit_softcap: float | None = None,
    implementation: str = "auto",
) -> Float[Array, "T N H"]:
    """Attention of packed queries over a paged pool, softmax in float32, result in q's dtype.

    page_table_BM: page ids; columns past a row's context may hold anything, they are not read into the result.
    context_lens_B: tokens a row attends to, this step's included; 0 for a padding row.
    row_counts: (s, r): rows [0, s) have exactly one query each, rows [s, r) any number, rows [r, B) none.
    scale: multiplies q·k (usually H ** -0.5). sliding_window: a query sees that many last positions,
    itself included; None for all. logit_softcap: c * tanh(x / c) on the scaled scores; None for none.
    implementation: "mosaic_gpu" (Hopper GPUs), "jax_triton" (NVIDIA GPUs from Ampere on, with jax-triton
    installed), "xla" (tiles, any backend), "reference" (the plain definition, O(T * M * Z) memory) or
    "auto": the first of these that the device and the arrays allow.
    Outputs of queries that belong to no row are finite and unspecified.
    Raises ValueError for shapes that contradict each other, an unknown implementation or one that does
    not take such arrays.
    """
    num_heads, head_dim = q_TNH.shape[1:]
    _, two, num_kv_heads, _, pool_head_dim = pool_P2KZH.shape
    if two != 2 or pool_head_dim != head_dim or num_heads % num_kv_heads:
        raise ValueError(
            f"q {q_TNH.shape} does not fit a pool of shape {pool_P2KZH.shape}: want [P, 2, K, Z, H] with K dividing N"
        )
    if page_table_BM.shape[0] > q_TNH.shape[0]:
        raise ValueError(
            f"{page_table_BM.shape[0]} rows but only {q_TNH.shape[0]} queries: a bucket has at least a token a row"
        )
    if implementation == "auto":
        implementation = _choose(q_TNH, pool_P2KZH)
    elif implementation not in _IMPLEMENTATIONS:
        known = ["auto", *sorted(_IMPLEMENTATIONS)]
        raise ValueError(f"implementation={implementation!r} is unknown; choose one of {known}")
    elif implementation in _UNSUPPORTED and (reason := _UNSUPPORTED[implementation](q_TNH, pool_P2KZH)):
        raise ValueError(f"implementation={implementation!r} does not take {reason}")
    elif implementation == "jax_triton" and (reason := missing()):
        raise ValueError(f"implementation='jax_triton' cannot be used: {reason}")
    attend = _IMPLEMENTATIONS[implementation]
    return attend(
        q_TNH, pool_P2KZH, page_table_BM, context_lens_B, query_starts, row_counts,
        scale=scale, sliding_window=sliding_window, logit_softcap=logit_softcap,
    )  # fmt: skip


def _choose(q_TNH: Array, pool_P2KZH: Array) -> str:
    if jax.default_backend() != "gpu":
        return "xla"
    device = jax.devices()[0]
    is_hopper = getattr(device, "compute_capability", None) == "9.0"
    reason = unsupported_by_hopper(q_TNH, pool_P2KZH) if is_hopper else "it is no Hopper GPU"
    if reason is None:
        return "mosaic_gpu"
    _say_once(f"attention on {device.device_kind} does not run through mosaic_gpu: {reason}")
    reason = missing_on(device) or unsupported_by_triton(q_TNH, pool_P2KZH)
    if reason is None:
        return "jax_triton"
    _say_once(f"attention on {device.device_kind} runs through XLA, which is slow: not through jax_triton: {reason}")
    return "xla"


@lru_cache(maxsize=64)
def _say_once(line: str) -> None:
    _log.warning(line)
