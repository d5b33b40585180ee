# pyright: basic, reportMissingImports=false
# (the kernel language hands untyped pointers to its bodies)
"""Thresholds of top-k and top-p without sorting: one program a row, seven pivots a pass over the row.

A row of 128k logits is half a megabyte: passes after the first mostly find it in the L2 cache, and each divides
the bracket around the threshold by eight. The first pass's pivots are logits that thresholds lie between in
practice; later ones divide the bracket evenly by the bits of the floats, so that the search always ends.
Where top-k leaves few tokens, they are copied side by side, and top-p searches those alone.
"""

from typing import no_type_check

import jax
import jax.numpy as jnp
import triton
import triton.language as tl
from jaxtyping import Array, Float, Int

from pallas_kernels.jax_triton.door import compute_capability, load

_BLOCK = 2048  # logits of one step of a pass
_WARPS = 16
_PIVOTS = tl.constexpr(8)  # the first stands for the floor
_KEY_OF_MINUS_INF = tl.constexpr(-0x7F800000)
_KEY_OF_NO_MASS = tl.constexpr(-0x42D00000)  # of -104, whose exp() is 0 in float32


def raise_floors(
    scaled_BV: Float[Array, "B V"], floor_B: Int[Array, " B"], top_k_B: Int[Array, " B"], top_p_B: Float[Array, " B"]
) -> Int[Array, " B"]:
    """Keys from which up a row's tokens are kept: floor_B raised by top-k, then by top-p of what is left.

    scaled_BV: float32, each row's maximum 0. floor_B: keys as of `jaxserve.sampling.filters.order_keys`.
    top_k_B: 0 for all. top_p_B: 1 for all. A row that asks for neither costs nothing; one with NaN ends too.
    """
    num_rows, vocab = scaled_BV.shape
    floors_B, _ = load().triton_call(
        scaled_BV, floor_B, top_k_B, top_p_B,
        kernel=_floors_kernel,
        out_type=(
            jax.ShapeDtypeStruct((num_rows,), jnp.int32),
            jax.ShapeDtypeStruct((num_rows, _BLOCK), jnp.float32),
        ),
        grid=num_rows,
        compute_capability=compute_capability(),
        num_warps=_WARPS,
        vocab=vocab, block=_BLOCK,
    )  # fmt: skip
    return floors_B


@triton.jit
@no_type_check
def _floors_kernel(
    scaled_ptr, floor_ptr, top_k_ptr, top_p_ptr, out_ptr, few_ptr, vocab: tl.constexpr, block: tl.constexpr
):
    row = tl.program_id(0)
    row_ptr = scaled_ptr + row.to(tl.int64) * vocab
    few_ptr += row * block
    floor = tl.load(floor_ptr + row)
    top_k = tl.load(top_k_ptr + row)
    top_p = tl.load(top_p_ptr + row)
    num_left = 0 * top_p + float("inf")
    if top_k > 0:
        lowest = _KEY_OF_MINUS_INF + 0 * floor
        key, num_left = _search(row_ptr, lowest, floor, top_k.to(tl.float32), False, vocab, block)
        floor = tl.maximum(floor, key)
    if top_p < 1:
        low = tl.maximum(floor, _KEY_OF_NO_MASS)
        if num_left <= block:
            _gather(row_ptr, few_ptr, floor, vocab, block)
            floor, _ = _search(few_ptr, low, floor, top_p, True, block, block)
        else:
            floor, _ = _search(row_ptr, low, floor, top_p, True, vocab, block)
    tl.store(out_ptr + row, floor)


@triton.jit
@no_type_check
def _gather(row_ptr, few_ptr, floor, vocab: tl.constexpr, block: tl.constexpr):
    """Copy the tokens from the floor up, at most `block` of them, to few_ptr, and fill it up with -inf."""
    count = 0 * floor
    for first in tl.range(0, vocab, block, num_stages=3):
        ids = first + tl.arange(0, block)
        scaled = tl.load(row_ptr + ids, mask=ids < vocab, other=float("-inf"))
        is_kept = (_keys(scaled) >= floor) & (ids < vocab)
        places = count + tl.cumsum(is_kept.to(tl.int32), 0) - 1
        tl.store(few_ptr + places, scaled, mask=is_kept & (places < block))
        count += tl.sum(is_kept.to(tl.int32), 0)
    places = tl.arange(0, block)
    tl.store(few_ptr + places, float("-inf"), mask=places >= count)
    tl.debug_barrier()  # other threads of the program read what this one wrote


@triton.jit
@no_type_check
def _search(row_ptr, low, floor, target, by_mass: tl.constexpr, vocab: tl.constexpr, block: tl.constexpr):
    """A key that parts the same tokens as the largest one from which upwards they weigh at least the target.

    And what they weigh from there up (inf where even all weigh less).
    by_mass: tokens from the floor up weigh their probability, and the target is a share of it; else each weighs 1.
    Tokens from `low` up weigh enough (or low is as low as it goes), tokens from `high` up do not. A bracket that
    weighs less than two of its lightest tokens holds one at most, and is closed.
    """
    numbers = tl.arange(0, _PIVOTS)
    high = 0 * low + 1
    low_weight = 0 * target + float("inf")
    high_weight = 0 * target
    pivots = _keys(_first_pivots(numbers))
    is_first = low < high
    is_open = low < high
    while is_open:
        pivots = tl.minimum(tl.maximum(pivots, low + 1), high - 1)
        pivots = tl.where(numbers == 0, floor, pivots)
        weights = _weights_from(row_ptr, pivots, floor, by_mass, vocab, block)
        if by_mass:
            total = tl.sum(tl.where(numbers == 0, weights, 0.0), 0)
            target = tl.where(is_first, target * total, target)
        is_first = low > high
        # Not `weights < target`: a NaN must close in on something too, or the loop would never end.
        is_enough = (weights >= target) & (numbers > 0)
        is_less = (numbers > 0) & (is_enough == 0)
        low = tl.maximum(low, tl.max(tl.where(is_enough, pivots, low), 0))
        high = tl.minimum(high, tl.min(tl.where(is_less, pivots, high), 0))
        low_weight = tl.minimum(low_weight, tl.min(tl.where(is_enough, weights, float("inf")), 0))
        high_weight = tl.maximum(high_weight, tl.max(tl.where(is_less, weights, 0.0), 0))
        least = _exp(_value(low)) if by_mass else 1.0
        is_open = (high - low > 1) & (low_weight - high_weight >= 2 * least) & (low_weight != target)
        pivots = low + numbers * tl.maximum((high - low) // _PIVOTS, 1)
    return low, low_weight


@triton.jit
@no_type_check
def _first_pivots(numbers):
    logits = tl.where(numbers == 7, -1.0, -2.5)
    logits = tl.where(numbers == 5, -4.5, logits)
    logits = tl.where(numbers == 4, -7.0, logits)
    logits = tl.where(numbers == 3, -10.0, logits)
    logits = tl.where(numbers == 2, -16.0, logits)
    return tl.where(numbers == 1, -30.0, logits)


@triton.jit
@no_type_check
def _weights_from(row_ptr, pivots, floor, by_mass: tl.constexpr, vocab: tl.constexpr, block: tl.constexpr):
    """What the tokens from each pivot up weigh."""
    sums = tl.zeros((_PIVOTS, block), tl.float32)
    for first in tl.range(0, vocab, block, num_stages=3):
        ids = first + tl.arange(0, block)
        scaled = tl.load(row_ptr + ids, mask=ids < vocab, other=float("-inf"))
        keys = _keys(scaled)
        weights = tl.where(keys >= floor, _exp(scaled), 0.0) if by_mass else tl.where(ids < vocab, 1.0, 0.0)
        sums += tl.where(keys[None, :] >= pivots[:, None], weights[None, :], 0.0)
    return tl.sum(sums, 1)


@triton.jit
@no_type_check
def _keys(values):
    """int32 in the order of the float32 values; 0.0 and -0.0 are equal."""
    bits = tl.where(values == 0, 0.0, values).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, -0x80000000 - bits, bits)


@triton.jit
@no_type_check
def _value(key):
    return tl.where(key < 0, -0x80000000 - key, key).to(tl.float32, bitcast=True)


@triton.jit
@no_type_check
def _exp(x):
    """exp() to about the last bit: the hardware's base 2 alone would be off by |x| of them."""
    log2_e: tl.constexpr = 1.44269502  # as a float32, and what that lacks
    rest: tl.constexpr = 1.92596299e-8
    x = tl.maximum(x, -150.0)
    power = x * log2_e
    lost = tl.fma(x, log2_e, -power) + x * rest
    return tl.exp2(power) * (1 + lost * 0.69314718)
