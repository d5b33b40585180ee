"""Kernels of a paged-attention step: arrays in, arrays out; no mesh, no config object, no model name."""

from pallas_kernels.kv_write import write_kv
from pallas_kernels.paged_attention import attention_workspace, pool_head_dim, ragged_paged_attention

__all__ = ["attention_workspace", "pool_head_dim", "ragged_paged_attention", "write_kv"]
