# pyright: basic, reportPrivateImportUsage=false
"""Paged attention of one query a row on Hopper, in one launch.

`plan.py` cuts a step's work into equal runs, `decode_worker.py` says what a worker does with its run and
`decode_merge.py` how workers that share a head come to one result. See docs/adr/0009.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from pallas_kernels.mosaic_gpu.decode_launch import TILE, DecodeShape
from pallas_kernels.mosaic_gpu.decode_worker import work
from pallas_kernels.plan import plan_decode, plan_first_tiles
from pallas_kernels.tuning import DecodeConfig


def decode_attention(
    q_BNH: Float[Array, "B N H"],
    pool_P2KZH: Float[Array, "P 2 K Z H"],
    page_table_BM: Int[Array, "B M"],
    context_lens_B: Int[Array, " B"],
    *,
    scale: float,
    sliding_window: int | None,
    logit_softcap: float | None,
    config: DecodeConfig,
    workspace: jax.Ref | None = None,
    interpret: bool = False,
) -> Float[Array, "B N H"]:
    """See `pallas_kernels.ragged_paged_attention`; rows of context 0 give 0 and come after all others.

    workspace: at least a counter a worker, int32, all 0, and all 0 again after the call; without it each
    call makes its own, which costs a launch. interpret: for the interpreter on a CPU.
    """
    num_rows, num_heads, head_dim = q_BNH.shape
    num_pages, _, num_kv_heads, page_size, _ = pool_P2KZH.shape
    group = num_heads // num_kv_heads
    width = _copyable_group(group, head_dim)
    q_BKGH = q_BNH.reshape(num_rows, num_kv_heads, group, head_dim)
    if width != group:
        q_BKGH = jnp.pad(q_BKGH, ((0, 0), (0, 0), (0, width - group), (0, 0)))
    shape = DecodeShape(
        num_rows, num_kv_heads, width, head_dim, num_pages, page_size, page_table_BM.shape[1], q_BNH.dtype,
        pool_P2KZH.dtype,
        config.num_sms * config.workers_per_sm, config.num_stages, scale, sliding_window, logit_softcap, interpret,
    )  # fmt: skip
    cut: dict[str, Any] = dict(
        num_heads=num_kv_heads, tile=TILE, sliding_window=sliding_window, num_workers=shape.num_workers
    )
    first_WF = plan_first_tiles(
        context_lens_B, page_table_BM, page_size=page_size, num_pages=num_pages, num_tiles=shape.num_stages, **cut
    )
    plan_WI = jnp.concatenate([plan_decode(context_lens_B, **cut), first_WF], axis=1)
    if workspace is None:
        workspace = jax.new_ref(jnp.zeros(shape.num_workers, jnp.int32))
    assert workspace.shape[0] >= shape.num_workers, "a counter a worker"
    out_BKGH, *_ = _kernel(shape)(q_BKGH, pool_P2KZH, page_table_BM, context_lens_B, plan_WI, workspace)
    return out_BKGH[:, :, :group].reshape(q_BNH.shape)


def _copyable_group(group: int, head_dim: int) -> int:
    """The least number of rows that copies past a group's end allow (8 or fewer, or whole tiles of 8) and
    that 128 threads divide among them."""
    while (group > 8 and group % 8) or (group * head_dim) % 128:
        group += 1
    return group


def _kernel(shape: DecodeShape):
    return plgpu.kernel(
        functools.partial(work, shape),
        out_type=shape.outputs(),
        grid=(shape.num_workers,),
        grid_names=("worker",),
        scratch_types=shape.scratch(),
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )
