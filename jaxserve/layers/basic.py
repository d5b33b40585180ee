"""The plain layers of a decoder: linear, RMS norm, embedding; and the type of an attention.

All act on the last axis of arrays with any leading axes. Constructors make zeros: build a model
under `nnx.eval_shape` and fill its leaves from a checkpoint (jaxserve/models/weights.py).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from jaxserve.layers.shards import WHOLE, Shards, Vocabulary

_LANES = 32  # of one slice: two vectors of AVX-512, the fastest width measured
_MOST_SLICES = 64  # written out: beyond that slices grow instead, and compile time does not

type Attend = Callable[
    [int, Float[Array, "T N H"], Float[Array, "T K H"], Float[Array, "T K H"]], Float[Array, "T N H"]
]
"""(layer index, queries, keys, values after the rotary embedding) -> one output a query."""


class Linear(nnx.Module):
    """x @ weight.T + bias, the weight laid out [out, in] as checkpoints keep it.

    sums_over: where the columns of the weight, and x, are parts of wider ones; the result is the whole sum.
    """

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool, dtype: jnp.dtype, sums_over: Shards = WHOLE
    ) -> None:
        self.weight = nnx.Param(jnp.zeros((out_features, in_features), dtype))
        self.bias = nnx.Param(jnp.zeros((out_features,), dtype)) if bias else None
        self.shards = sums_over

    def __call__(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        y = self.shards.sum(linear(x, self.weight[...]))
        return y if self.bias is None else y + self.bias[...]


def linear(
    x: Float[Array, "... I"], weight_OI: Float[Array, "O I"], out_dtype: jnp.dtype | None = None
) -> Float[Array, "... O"]:
    """x @ weight.T with sums in float32, given back in out_dtype (x's own if None).

    The weight may be wider than x (`weights.widened`): the product is then taken at its width.
    """
    if x.dtype != weight_OI.dtype:
        return linear(x.astype(weight_OI.dtype), weight_OI).astype(out_dtype or x.dtype)

    def product(x: Array, weight_OI: Array) -> Array:
        dimensions = (((x.ndim - 1,), (1,)), ((), ()))
        # A GPU rounds float32 operands to TF32 unless told not to; who asks for float32 means it.
        precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
        return lax.dot_general(x, weight_OI, dimensions, precision, preferred_element_type=out_dtype)

    if x.size != x.shape[-1] or x.dtype.itemsize != 2:
        return product(x, weight_OI)

    def one_row(x: Array, weight_OI: Array) -> Array:
        return one_row_product(x.reshape(-1), weight_OI).reshape(*x.shape[:-1], -1).astype(out_dtype or x.dtype)

    return lax.platform_dependent(x, weight_OI, cpu=one_row, default=product)


def one_row_product(x_I: Float[Array, "I"], weight_OI: Float[Array, "O I"]) -> Float[Array, "O"]:
    """weight @ x of 16-bit floats on a CPU, in float32.

    XLA's own 16-bit matrix-vector product there takes ten times the float32 one. Written out as a sum
    of slices it becomes a single loop whose lanes are widened, multiplied and added side by side.
    """
    size = x_I.shape[0]
    lanes = _LANES * -(-size // (_LANES * _MOST_SLICES))
    whole = size - size % lanes
    x_I = lax.optimization_barrier(x_I.astype(jnp.float32))

    def part(start: int, stop: int) -> Array:
        return weight_OI[:, start:stop].astype(jnp.float32) * x_I[start:stop]

    total_O = jnp.sum(part(whole, size), axis=-1)
    if whole:
        sums_OL = sum((part(start, start + lanes) for start in range(lanes, whole, lanes)), part(0, lanes))
        # The barrier keeps the sum over lanes out of that loop, which would then no longer be one of vectors.
        total_O += jnp.sum(lax.optimization_barrier(sums_OL), axis=-1)
    return total_O


class RMSNorm(nnx.Module):
    """x / rms(x) * weight: the quotient in float32, rounded to x's dtype before the weight, as transformers does."""

    def __init__(self, size: int, eps: float, *, dtype: jnp.dtype) -> None:
        self.weight = nnx.Param(jnp.zeros((size,), dtype))
        self.eps = eps

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        wide = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        return self.weight[...] * (wide * lax.rsqrt(mean_square + self.eps)).astype(x.dtype)


class Embedding(nnx.Module):
    """A row of the table for each token id. Ids must lie in [0, V): JAX clamps others silently."""

    def __init__(self, vocabulary: Vocabulary, size: int, *, dtype: jnp.dtype) -> None:
        self.weight = nnx.Param(jnp.zeros((vocabulary.num_local, size), dtype))
        self.vocabulary = vocabulary

    def __call__(self, token_ids_T: Int[Array, "T"]) -> Float[Array, "T D"]:
        if self.vocabulary.shards.axis is None:
            return jnp.take(self.weight[...], token_ids_T, axis=0, mode="clip")
        places_T = self.vocabulary.place_of(token_ids_T)  # zeros for what another device has: the sum is exact
        rows_TD = self.weight[...].at[places_T].get(mode="fill", fill_value=0)
        return self.vocabulary.shards.sum(rows_TD)


def silu_gate(gate_up: Float[Array, "... F2"]) -> Float[Array, "... F"]:
    """silu(first half) * second half."""
    gate, up = jnp.split(gate_up, 2, axis=-1)
    return jax.nn.silu(gate) * up
