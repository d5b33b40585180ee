"""Ragged paged attention: the contract, its checks and the choice of implementation.

One call serves a step's whole mix of decode tokens and prompt chunks. Queries are packed without
gaps; row b owns queries [query_starts[b], query_starts[b + 1]) and attends to the first
`context_lens[b]` tokens of the pages in its line of the page table, causally: its last query sits at
position `context_lens[b] - 1`.

The pool may differ from the queries in two ways, and both are settled here, so that no implementation
needs to know: stored numbers may need a scale a KV head (an 8-bit pool), and stored heads may be wider
than the queries' (a kernel takes some sizes only; `pool_head_dim` says which to allocate).
"""

import logging
from collections.abc import Callable
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.jax_triton.door import missing, missing_on
from pallas_kernels.jax_triton.ragged import triton_paged_attention
from pallas_kernels.jax_triton.ragged import unsupported as unsupported_by_triton
from pallas_kernels.mosaic_gpu.ragged import HEAD_DIMS, hopper_paged_attention
from pallas_kernels.mosaic_gpu.ragged import unsupported as unsupported_by_hopper
from pallas_kernels.reference import plain_paged_attention
from pallas_kernels.tuning import most_workers
from pallas_kernels.xla_attention import tiled_paged_attention

_IMPLEMENTATIONS: dict[str, Callable[..., Array]] = {
    "reference": plain_paged_attention,
    "xla": tiled_paged_attention,
    "mosaic_gpu": hopper_paged_attention,
    "jax_triton": triton_paged_attention,
}
_UNSUPPORTED: dict[str, Callable[..., str | None]] = {
    "mosaic_gpu": unsupported_by_hopper,
    "jax_triton": unsupported_by_triton,
}
_HOPPER = "9.0"  # compute capability of the GPUs that `mosaic_gpu` is for
_log = logging.getLogger(__name__)


def attention_workspace() -> jax.Ref:
    """Counters that one step's calls of `ragged_paged_attention` share, all 0 between them. To be made inside the
    step's trace; calls that share one run one after another."""
    return jax.new_ref(jnp.zeros(most_workers(), jnp.int32))


def ragged_paged_attention(
    q_TNH: Float[Array, "T N H"],
    pool_P2KZH: Float[Array, "P 2 K Z Hp"],
    page_table_BM: Int[Array, "B M"],
    context_lens_B: Int[Array, " B"],
    query_starts: Int[Array, " B+1"],
    row_counts: Int[Array, " 2"],
    *,
    pool_scale_2K: Float[Array, "2 K"] | None = None,
    scale: float,
    sliding_window: int | None = None,
    logit_softcap: float | None = None,
    implementation: str = "auto",
    workspace: jax.Ref | None = None,
) -> Float[Array, "T N H"]:
    """Attention of packed queries over a paged pool, softmax in float32, result in q's dtype.

    pool_P2KZH: keys, then values; float32, bfloat16, float16, float8_e4m3fn or float8_e5m2, whatever the queries
    are. Its heads may be wider than the queries'; what lies behind H must be finite where a key was written
    and is not read into the result (`write_kv` leaves zeros there).
    pool_scale_2K: a key or value is what is stored times the scale of its KV head, keys' scales first; None for 1.
    page_table_BM: page ids; columns past a row's context may hold anything, they are not read into the result.
    context_lens_B: tokens a row attends to, this step's included; 0 for a padding row.
    row_counts: (s, r): rows [0, s) have exactly one query each, rows [s, r) any number, rows [r, B) none.
    scale: multiplies q·k (usually H ** -0.5). sliding_window: a query sees that many last positions,
    itself included; None for all. logit_softcap: c * tanh(x / c) on the scaled scores; None for none.
    implementation: "mosaic_gpu" (Hopper GPUs), "jax_triton" (NVIDIA GPUs from Ampere on, with jax-triton
    installed), "xla" (tiles, any backend), "reference" (the plain definition, O(T * M * Z) memory) or
    "auto": the first of these that the device and the arrays allow.
    workspace: from `attention_workspace`; with one to share, the Hopper kernels need no launch to make their own.
    Outputs of queries that belong to no row are finite and unspecified.
    Raises ValueError for shapes that contradict each other, an unknown implementation or one that does
    not take such arrays.
    """
    _check_shapes(q_TNH, pool_P2KZH, page_table_BM)
    head_dim, padding = q_TNH.shape[2], pool_P2KZH.shape[4] - q_TNH.shape[2]
    if pool_scale_2K is not None:
        q_TNH = _times_head_scale(q_TNH, pool_scale_2K[0])
    if padding:
        q_TNH = jnp.pad(q_TNH, ((0, 0), (0, 0), (0, padding)))
    implementation = _implementation(implementation, q_TNH, pool_P2KZH)
    attend = _IMPLEMENTATIONS[implementation]
    if implementation == "mosaic_gpu":
        attend = partial(attend, workspace=workspace)
    out_TNH = attend(
        q_TNH, pool_P2KZH, page_table_BM, context_lens_B, query_starts, row_counts,
        scale=scale, sliding_window=sliding_window, logit_softcap=logit_softcap,
    )  # fmt: skip
    if padding:
        out_TNH = out_TNH[..., :head_dim]
    return out_TNH if pool_scale_2K is None else _times_head_scale(out_TNH, pool_scale_2K[1])


def pool_head_dim(q: jax.ShapeDtypeStruct, pool: jax.ShapeDtypeStruct, compute_capability: str | None) -> int:
    """The head size to give a pool that is yet to be allocated: the next one that the device's kernels take.

    q `[T, N, H]`, pool `[P, 2, K, Z, H]`: types and shapes as they would be without padding; of T and P any will do.
    compute_capability: of the GPU, such as "9.0"; None on any other device. Where the kernels would refuse the
    arrays for another reason, or more than half of the pool would be padding, H itself.
    """
    head_dim = pool.shape[4]
    wider = min((size for size in HEAD_DIMS if size >= head_dim), default=head_dim)
    padded = jax.ShapeDtypeStruct((*pool.shape[:4], wider), pool.dtype)
    if compute_capability != _HOPPER or wider > 2 * head_dim or unsupported_by_hopper(q, padded):
        return head_dim
    return wider


def _check_shapes(q_TNH: Array, pool_P2KZH: Array, page_table_BM: Array) -> None:
    num_heads, head_dim = q_TNH.shape[1:]
    _, two, num_kv_heads, _, pool_head_dim = pool_P2KZH.shape
    if two != 2 or pool_head_dim < head_dim or num_heads % num_kv_heads:
        raise ValueError(
            f"q {q_TNH.shape} does not fit a pool of shape {pool_P2KZH.shape}: "
            "want [P, 2, K, Z, Hp] with K dividing N and Hp at least H"
        )
    if page_table_BM.shape[0] > q_TNH.shape[0]:
        raise ValueError(
            f"{page_table_BM.shape[0]} rows but only {q_TNH.shape[0]} queries: a bucket has at least a token a row"
        )


def _times_head_scale(x_TNH: Array, scale_K: Array) -> Array:
    """Queries or outputs times the scale of the KV head each belongs to, rounded once."""
    scale_N1 = jnp.repeat(scale_K.astype(jnp.float32), x_TNH.shape[1] // scale_K.shape[0])[:, None]
    return (x_TNH.astype(jnp.float32) * scale_N1).astype(x_TNH.dtype)


def _implementation(asked: str, q_TNH: Array, pool_P2KZH: Array) -> str:
    """The implementation that serves: the one asked for, or the device's."""
    if asked == "auto":
        return _choose(q_TNH, pool_P2KZH)
    if asked not in _IMPLEMENTATIONS:
        known = ["auto", *sorted(_IMPLEMENTATIONS)]
        raise ValueError(f"implementation={asked!r} is unknown; choose one of {known}")
    if asked in _UNSUPPORTED and (reason := _UNSUPPORTED[asked](q_TNH, pool_P2KZH)):
        raise ValueError(f"implementation={asked!r} does not take {reason}")
    if asked == "jax_triton" and (reason := missing()):
        raise ValueError(f"implementation='jax_triton' cannot be used: {reason}")
    return asked


def _choose(q_TNH: Array, pool_P2KZH: Array) -> str:
    if jax.default_backend() != "gpu":
        return "xla"
    device = jax.devices()[0]
    is_hopper = getattr(device, "compute_capability", None) == _HOPPER
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
