"""The filter kernel against the XLA version: what top-k and top-p keep."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling_batches import make_batch

from jaxserve.core.params import SamplingParams
from jaxserve.sampling import filters
from jaxserve.sampling.filters import kept_together, kept_tokens
from jaxserve.sampling.sampler import sample
from jaxserve.sampling.state import empty_state
from pallas_kernels.jax_triton.door import missing_on

ROUNDING = 2e-6  # of the sum of a row's probabilities: tokens nearer than that to top-p may fall either way
TOP_K = [0, 1, 2, 20, 50, 400, 0, 10**6]
TOP_P = [0.9, 1.0, 0.99, 0.2, 0.95, 1.0, 1.0, 0.5]
MIN_P = [0.0, 0.0, 0.01, 0.0, 0.001, 0.0, 0.05, 0.0]


@pytest.fixture(autouse=True)
def _triton() -> None:
    if reason := missing_on(jax.devices()[0]):
        pytest.skip(reason)


def logits(kind: str, vocab: int) -> jax.Array:
    rng = np.random.default_rng(vocab)
    normal = rng.standard_normal((len(TOP_K), vocab)).astype(np.float32)
    shaped = {
        "normal": 3 * normal,
        "ties": np.round(2 * normal) / 2,
        "flat": 0 * normal,
        "steep": 100 * normal,
        "close": 1e-4 * normal,
        "masked": np.where(np.arange(vocab) < 10, normal, -np.inf),
    }[kind]
    return jnp.asarray(shaped - shaped.max(-1, keepdims=True))


@pytest.mark.parametrize("vocab", [128, 32003, 128256])
@pytest.mark.parametrize("kind", ["normal", "ties", "flat", "steep", "close", "masked"])
def test_keeps_what_the_xla_version_keeps(kind: str, vocab: int) -> None:
    scaled, top_p = logits(kind, vocab), np.array(TOP_P, np.float32)
    top_k, min_p = jnp.array(TOP_K), jnp.array(MIN_P)
    got = np.asarray(jax.jit(kept_tokens, static_argnames="implementation")(
        scaled, top_k, jnp.asarray(top_p), min_p, implementation="jax_triton"
    ))  # fmt: skip
    is_nucleus = top_p < 1
    want, fewest, most = (
        np.asarray(kept_together(scaled, top_k, jnp.where(is_nucleus, top_p * share, 1), min_p))
        for share in (1, 1 - ROUNDING, 1 + ROUNDING)
    )
    np.testing.assert_array_equal(got[~is_nucleus], want[~is_nucleus])
    assert (fewest <= got).all() and (got <= most).all()
    assert (got != want).sum() <= 2  # rounding is an exception


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    scaled = logits("normal", 128256)
    rows = [jnp.array(TOP_K), jnp.array(TOP_P), jnp.array(MIN_P)]
    together = np.asarray(kept_tokens(scaled, *rows, implementation="jax_triton"))
    for i in range(len(TOP_K)):
        alone = kept_tokens(scaled[i : i + 1], *(x[i : i + 1] for x in rows), implementation="jax_triton")
        np.testing.assert_array_equal(np.asarray(alone)[0], together[i])


def test_rows_of_nan_end() -> None:
    scaled = logits("normal", 32003)
    scaled = scaled.at[:4, 17].set(jnp.nan).at[4:].set(jnp.nan)
    kept_tokens(scaled, jnp.full(8, 5), jnp.full(8, 0.9), jnp.zeros(8), implementation="jax_triton").block_until_ready()


def test_the_same_noise_chooses_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    params = [
        SamplingParams(temperature=0.7 + i / 40, top_p=(0.8, 0.95, 1.0)[i % 3], top_k=(0, 40)[i % 2], seed=i)
        for i in range(24)
    ]
    batch, state = make_batch(params), empty_state(len(params), 32000)
    logits_BV = 4 * jax.random.normal(jax.random.key(1), (len(params), 32000))
    chosen: dict[str, Any] = {}
    for implementation in ("xla", "jax_triton"):
        monkeypatch.setattr(filters, "_choose", lambda implementation=implementation: implementation)
        run = jax.jit(lambda *arrays: sample(*arrays, num_logprobs=0)[0].token_ids_B)
        chosen[implementation] = np.asarray(run(logits_BV, batch, state))
    np.testing.assert_array_equal(chosen["jax_triton"], chosen["xla"])
