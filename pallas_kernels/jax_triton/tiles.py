# pyright: basic, reportMissingImports=false
# (the kernel language hands untyped pointers to its bodies)
"""What the attention kernels share: where keys lie, and one tile's turn of the online softmax (in base 2)."""

from typing import no_type_check

import triton
import triton.language as tl

MASKED = tl.constexpr(-1e30)  # finite, so that a wholly masked tile gives 0 weights after the next real one
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
@no_type_check
def load_keys_values(
    pool_ptr, line_ptr, keys, dims, head, is_read, masked: tl.constexpr, dtype: tl.constexpr, num_pages: tl.constexpr,
    num_kv_heads: tl.constexpr, page_size: tl.constexpr, head_dim: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """[tile, width] keys and values of the row whose line of the page table begins at line_ptr.

    masked: only keys that is_read says are touched, the others give 0. width: head_dim rounded up to a power of two.
    """
    if masked:
        pages = tl.load(line_ptr + keys // page_size, mask=is_read, other=0)
    else:
        pages = tl.load(line_ptr + keys // page_size)
    # Other backends clamp an id out of range; an address out of range would end the process.
    pages = tl.minimum(tl.maximum(pages, 0), num_pages - 1).to(tl.int64)
    page_numbers: tl.constexpr = page_size * head_dim
    places = (pages * (2 * num_kv_heads) + head) * page_numbers + (keys % page_size) * head_dim
    key_ptrs = pool_ptr + places[:, None] + dims[None, :]
    value_ptrs = key_ptrs + num_kv_heads * page_numbers
    if masked:
        mask = is_read[:, None] & (dims < head_dim)[None, :]
        k = tl.load(key_ptrs, mask=mask, other=0.0)
        v = tl.load(value_ptrs, mask=mask, other=0.0)
    elif head_dim == width:
        k = tl.load(key_ptrs)
        v = tl.load(value_ptrs)
    else:
        mask = (dims < head_dim)[None, :] & (keys >= 0)[:, None]
        k = tl.load(key_ptrs, mask=mask, other=0.0)
        v = tl.load(value_ptrs, mask=mask, other=0.0)
    return _widen(k, dtype), _widen(v, dtype)


@triton.jit
@no_type_check
def _widen(x, dtype: tl.constexpr):
    """Numbers of the pool in the type of the queries. GPUs before Hopper cannot turn float8 into bfloat16 at once."""
    if x.dtype != dtype:
        x = x.to(tl.float16).to(tl.float32)
    return x.to(dtype)


@triton.jit
@no_type_check
def attend_tile(
    q, k, v, is_seen, acc, top, total, masked: tl.constexpr, scale: tl.constexpr, softcap: tl.constexpr
):  # fmt: skip
    """The running softmax (weighted sum of values, maximum, sum of weights) with one more tile of keys."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if softcap is None:
        scores = scores * (scale * LOG2_E)
    else:  # tanh(x) = 1 - 2 / (exp(2 x) + 1), right at both infinities
        tanh = 1 - 2 / (tl.exp2(scores * (2 * LOG2_E * scale / softcap)) + 1)
        scores = tanh * (softcap * LOG2_E)
    if masked:
        scores = tl.where(is_seen, scores, MASKED)
    new_top = tl.maximum(top, tl.max(scores, 1))
    weights = tl.exp2(scores - new_top[:, None])
    keep = tl.exp2(top - new_top)
    acc = tl.dot(weights.to(v.dtype), v, acc * keep[:, None], input_precision="ieee")
    return acc, new_top, total * keep + tl.sum(weights, 1)
