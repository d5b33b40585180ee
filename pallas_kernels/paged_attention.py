"""Ragged paged attention: the contract, its checks and the choice of implementation.

One call serves a step's whole mix of decode tokens and prompt chunks. Queries are packed without
gaps; row b owns queries [query_starts[b], query_starts[b + 1]) and attends to the first
`context_lens[b]` tokens of the pages in its line of the page table, causally: its last query sits at
position `context_lens[b] - 1`.
"""

import logging
from collections.abc import Callable
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.mosaic_gpu.ragged import hopper_paged_attention, unsupported
from pallas_kernels.reference import plain_paged_attention
from pallas_kernels.tuning import most_workers
from pallas_kernels.xla_attention import tiled_paged_attention

_IMPLEMENTATIONS: dict[str, Callable[..., Array]] = {
    "reference": plain_paged_attention,
    "xla": tiled_paged_attention,
    "mosaic_gpu": hopper_paged_attention,
}
_log = logging.getLogger(__name__)


def attention_workspace() -> jax.Ref:
    """Counters that one step's calls of `ragged_paged_attention` share, all 0 between them. To be made inside the
    step's trace; calls that share one run one after another."""
    return jax.new_ref(jnp.zeros(most_workers(), jnp.int32))


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
    workspace: jax.Ref | None = None,
) -> Float[Array, "T N H"]:
    """Attention of packed queries over a paged pool, softmax in float32, result in q's dtype.

    page_table_BM: page ids; columns past a row's context may hold anything, they are not read into the result.
    context_lens_B: tokens a row attends to, this step's included; 0 for a padding row.
    row_counts: (s, r): rows [0, s) have exactly one query each, rows [s, r) any number, rows [r, B) none.
    scale: multiplies q·k (usually H ** -0.5). sliding_window: a query sees that many last positions,
    itself included; None for all. logit_softcap: c * tanh(x / c) on the scaled scores; None for none.
    implementation: "mosaic_gpu" (Hopper GPUs), "xla" (tiles, any backend), "reference" (the plain
    definition, O(T * M * Z) memory) or "auto": the first of these that the device and the arrays allow.
    workspace: from `attention_workspace`; with one to share, the Hopper kernels need no launch to make their own.
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
    elif implementation == "mosaic_gpu" and (reason := unsupported(q_TNH, pool_P2KZH)):
        raise ValueError(f"implementation='mosaic_gpu' does not take {reason}")
    attend = _IMPLEMENTATIONS[implementation]
    if implementation == "mosaic_gpu":
        attend = partial(attend, workspace=workspace)
    return attend(
        q_TNH, pool_P2KZH, page_table_BM, context_lens_B, query_starts, row_counts,
        scale=scale, sliding_window=sliding_window, logit_softcap=logit_softcap,
    )  # fmt: skip


def _choose(q_TNH: Array, pool_P2KZH: Array) -> str:
    if jax.default_backend() != "gpu":
        return "xla"
    device = jax.devices()[0]
    if getattr(device, "compute_capability", None) != "9.0":
        _say_once(f"attention runs through XLA on {device.device_kind}: the kernels are for Hopper GPUs")
        return "xla"
    reason = unsupported(q_TNH, pool_P2KZH)
    if reason is not None:
        _say_once(f"attention runs through XLA: {reason}")
        return "xla"
    return "mosaic_gpu"


@lru_cache(maxsize=64)
def _say_once(line: str) -> None:
    _log.warning(line)
