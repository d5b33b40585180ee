# pyright: basic, reportPrivateImportUsage=false
"""Paged attention of prompt chunks on Hopper: FlashAttention-3's schedule over pages.

A worker is three warpgroups that go through the query tiles dealt to it by `prefill_plan.py`. One
fetches pages by TMA; two multiply, each 64 queries of one head, and take turns: one owns the tensor
cores while the other takes its softmax (arXiv 2407.08608, section 3.1). Where an even number of query
heads share a KV head the two work on two such heads of the same queries, else on neighbouring queries
of the same head. The pipeline of keys runs on across query tiles. See docs/adr/0012.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from pallas_kernels.mosaic_gpu.prefill_launch import PrefillShape
from pallas_kernels.mosaic_gpu.prefill_plan import ALIGNMENT, plan_prefill
from pallas_kernels.mosaic_gpu.prefill_worker import work
from pallas_kernels.tuning import PrefillConfig


def prefill_attention(
    q_TNH: Float[Array, "T N H"],
    pool_P2KZH: Float[Array, "P 2 K Z H"],
    page_table_BM: Int[Array, "B M"],
    context_lens_B: Int[Array, " B"],
    query_starts: Int[Array, " B+1"],
    row_counts: Int[Array, " 2"],
    *,
    scale: float,
    sliding_window: int | None,
    logit_softcap: float | None,
    config: PrefillConfig,
    interpret: bool = False,
) -> Float[Array, "T N H"]:
    """Outputs of the rows of several queries; see `pallas_kernels.ragged_paged_attention`.

    Those of queries that belong to no row are 0, those of single queries whatever the memory held.
    interpret: for the interpreter on a CPU.
    """
    num_tokens, num_heads, head_dim = q_TNH.shape
    num_pages, _, num_kv_heads, page_size, _ = pool_P2KZH.shape
    shape = PrefillShape(
        num_heads, num_kv_heads, head_dim, num_pages, page_size, page_table_BM.shape[1], q_TNH.dtype,
        pool_P2KZH.dtype, config.num_sms, config.num_stages, scale, sliding_window, logit_softcap, interpret,
    )  # fmt: skip
    padding = -num_tokens % ALIGNMENT
    plan = plan_prefill(
        context_lens_B,
        query_starts,
        row_counts,
        num_tokens=num_tokens + padding,
        query_tile=shape.query_tile,
        key_tile=shape.key_tile,
        sliding_window=sliding_window,
    )
    q_TNH = jnp.pad(q_TNH, ((0, padding), (0, 0), (0, 0))) if padding else q_TNH
    out_TNH = _kernel(shape, q_TNH)(q_TNH, pool_P2KZH, page_table_BM, plan.items_IJ, plan.num_items)
    return out_TNH[:num_tokens] if padding else out_TNH


def _kernel(shape: PrefillShape, q_TNH: Array):
    return plgpu.kernel(
        functools.partial(work, shape),
        out_type=jax.ShapeDtypeStruct(q_TNH.shape, q_TNH.dtype),
        grid=(shape.num_workers,),
        grid_names=("worker",),
        num_threads=3,
        thread_name="wg",
        scratch_types=shape.scratch(),
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )
