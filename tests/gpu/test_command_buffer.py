"""Conditions and loops in a command buffer, as every step has them, give what the CPU gives, wherever arrays lie."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxserve.runner.lowering import compiler_options
from jaxserve.sampling.filters import kept_tokens
from jaxserve.sampling.logprobs import top_by_passes

VOCAB = 128256
TOP_K = np.array([0, 1, 2, 20, 50, 400, 0, 10**6], np.int32)
TOP_P = np.array([0.9, 1.0, 0.99, 0.2, 0.95, 1.0, 1.0, 0.5], np.float32)
MIN_P = np.array([0.0, 0.0, 0.01, 0.0, 0.001, 0.0, 0.05, 0.0], np.float32)
ROUNDING = 3  # tokens that a sum in another order may add to or take from a nucleus


def scaled(kind: str) -> np.ndarray:
    normal = np.random.default_rng(VOCAB).standard_normal((len(TOP_K), VOCAB)).astype(np.float32)
    shaped = normal * {"normal": 3, "close": 1e-4, "steep": 100}[kind]
    return shaped - shaped.max(-1, keepdims=True)


def compiled(function: Callable[..., jax.Array], *arrays: np.ndarray) -> Callable[..., jax.Array]:
    """In a branch, with the options of a step."""

    def either(is_wanted: jax.Array, *arrays: jax.Array) -> jax.Array:
        shape = jax.eval_shape(function, *arrays)
        return lax.cond(is_wanted, function, lambda *_: jnp.zeros(shape.shape, shape.dtype), *arrays)

    specs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays]
    lowered = jax.jit(either).lower(jax.ShapeDtypeStruct((), jnp.bool_), *specs)
    return lowered.compile(compiler_options(jax.default_backend(), len(TOP_K)))


@pytest.mark.parametrize("kind", ["normal", "close", "steep"])
def test_filters(kind: str) -> None:
    arrays = (scaled(kind), TOP_K, TOP_P, MIN_P)
    with jax.default_device(jax.devices("cpu")[0]):
        want = np.asarray(kept_tokens(*map(jnp.asarray, arrays), implementation="xla"))
    run = compiled(partial(kept_tokens, implementation="xla"), *arrays)
    moved: list[jax.Array] = []
    for i in range(10):
        got = np.asarray(run(np.bool_(True), *map(jnp.asarray, arrays)))
        is_exact = TOP_P == 1
        np.testing.assert_array_equal(got[is_exact], want[is_exact], err_msg=f"run {i}")
        assert (np.abs(got.sum(-1) - want.sum(-1)) <= ROUNDING).all(), (i, got.sum(-1), want.sum(-1))
        assert not np.asarray(run(np.bool_(False), *map(jnp.asarray, arrays))).any()
        moved.append(jnp.zeros(100_003 * (i + 1)))  # the next run's arrays lie elsewhere


def test_the_list_of_log_probabilities() -> None:
    logits = scaled("normal")
    run = compiled(lambda x: top_by_passes(x, 20)[1], logits)
    moved: list[jax.Array] = []
    for i in range(5):
        got = np.asarray(run(np.bool_(True), jnp.asarray(logits)))
        np.testing.assert_array_equal(got, np.argsort(-logits, axis=-1, kind="stable")[:, :20])
        moved.append(jnp.zeros(100_003 * (i + 1)))
