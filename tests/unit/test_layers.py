"""RMS norm, linear, embedding and dense attention against the same arithmetic written plainly in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxserve.core.config import ModelConfig
from jaxserve.layers.basic import Embedding, Linear, RMSNorm, linear, silu_gate
from jaxserve.layers.dense_attention import dense_causal_attend
from jaxserve.layers.shards import Vocabulary
from jaxserve.models.weights import random_params

CONFIG = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=40,
    hidden_size=24,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_dim=4,
    intermediate_size=32,
    max_position_embeddings=64,
    sliding_windows=(None, 3),
    dtype="float32",
)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_rms_norm_is_computed_in_float32_and_rounded_before_the_weight() -> None:
    norm = RMSNorm(8, 1e-5, dtype=jnp.dtype(jnp.bfloat16))
    weight = jnp.asarray(normal(8, seed=1), jnp.bfloat16)
    norm.weight = nnx.Param(weight)
    x = jnp.asarray(100 * normal(3, 8), jnp.bfloat16)
    wide = np.asarray(x, np.float32)
    quotient = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + np.float32(1e-5))
    expected = jnp.asarray(quotient).astype(jnp.bfloat16) * weight
    np.testing.assert_allclose(np.asarray(norm(x), np.float32), np.asarray(expected, np.float32), rtol=1e-2)
    assert norm(x).dtype == jnp.bfloat16


def test_linear_has_out_by_in_weights_and_an_optional_bias() -> None:
    layer = Linear(4, 3, bias=True, dtype=jnp.dtype(jnp.float32))
    assert layer.bias is not None
    layer.weight, layer.bias = nnx.Param(jnp.asarray(normal(3, 4))), nnx.Param(jnp.asarray(normal(3, seed=2)))
    x = normal(2, 5, 4, seed=3)
    np.testing.assert_allclose(layer(jnp.asarray(x)), x @ normal(3, 4).T + normal(3, seed=2), rtol=1e-5, atol=1e-6)
    assert Linear(4, 3, bias=False, dtype=jnp.dtype(jnp.float32)).bias is None


def test_linear_can_widen_its_sums() -> None:
    x, weight = jnp.ones((1, 512), jnp.bfloat16), jnp.full((1, 512), 1.0, jnp.bfloat16).at[0, 0].set(2.0)
    assert float(linear(x, weight, jnp.dtype(jnp.float32))[0, 0]) == 513.0  # not a bfloat16


@pytest.mark.parametrize("size", [1, 31, 32, 100, 768, 2048, 2049, 14336])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_one_row_of_16_bits_is_summed_in_float32_like_any_other_row(size: int, dtype: jnp.dtype) -> None:
    x, weight = jnp.asarray(normal(1, size), dtype), jnp.asarray(normal(7, size, seed=1), dtype)
    exact = np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T
    one = linear(x, weight, jnp.dtype(jnp.float32))
    assert one.shape == (1, 7) and one.dtype == jnp.float32
    np.testing.assert_allclose(one, exact, rtol=1e-5, atol=1e-5 * size**0.5)
    assert linear(x[None], weight).shape == (1, 1, 7) and linear(x, weight).dtype == dtype
    two = linear(jnp.concatenate([x, x]), weight)[:1]  # rounded once, at the end
    np.testing.assert_allclose(np.float32(linear(x, weight)), np.float32(two), rtol=2**-7, atol=2**-7)


def test_embedding_takes_rows() -> None:
    table = Embedding(Vocabulary(5), 2, dtype=jnp.dtype(jnp.float32))
    table.weight = nnx.Param(jnp.arange(10.0).reshape(5, 2))
    np.testing.assert_array_equal(table(jnp.array([4, 0])), [[8, 9], [0, 1]])


def test_silu_gate() -> None:
    gate, up = normal(3, 4), normal(3, 4, seed=1)
    expected = gate / (1 + np.exp(-gate)) * up
    np.testing.assert_allclose(silu_gate(jnp.concatenate([gate, up], axis=-1)), expected, rtol=1e-5)


@pytest.mark.parametrize("layer", [0, 1])
def test_dense_attention_against_loops(layer: int) -> None:
    q_TNH, k_TKH, v_TKH = normal(7, 6, 4), normal(7, 2, 4, seed=1), normal(7, 2, 4, seed=2)
    found = dense_causal_attend(CONFIG)(layer, jnp.asarray(q_TNH), jnp.asarray(k_TKH), jnp.asarray(v_TKH))
    window = CONFIG.sliding_windows[layer] or 7
    for t in range(7):
        for n in range(6):
            seen = range(max(0, t - window + 1), t + 1)
            weights = np.exp([q_TNH[t, n] @ k_TKH[s, n // 3] / 2 for s in seen])
            expected = sum(w * v_TKH[s, n // 3] for w, s in zip(weights / weights.sum(), seen, strict=True))
            np.testing.assert_allclose(found[t, n], expected, rtol=1e-4, atol=1e-5)


def test_the_model_is_causal_and_can_be_mapped_and_differentiated() -> None:
    loaded = random_params(CONFIG, 0)
    tokens_BT = jnp.array([[1, 2, 3, 4, 5], [1, 2, 3, 9, 9]])
    positions_T = jnp.arange(5)

    def logits(leaves: list[jax.Array]) -> jax.Array:
        model = loaded.merge(leaves)
        return jax.vmap(
            lambda ids_T: model.logits(model(ids_T, positions_T, positions_T + 1, dense_causal_attend(CONFIG)))
        )(tokens_BT)

    logits_BTV = jax.jit(logits)(loaded.leaves)
    np.testing.assert_allclose(logits_BTV[0, :3], logits_BTV[1, :3], atol=1e-5)
    assert not np.allclose(logits_BTV[0, 3], logits_BTV[1, 3], atol=1e-3)
    gradients = jax.jit(jax.grad(lambda leaves: jnp.mean(logits(leaves) ** 2)))(loaded.leaves)
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in gradients)


def test_half_precision_gives_float32_logits_near_the_float32_model() -> None:
    loaded = random_params(CONFIG, 0)
    narrow = [leaf.astype(jnp.bfloat16) for leaf in loaded.leaves]
    ids_T = jnp.arange(6)

    @jax.jit
    def run(leaves: list[jax.Array]) -> jax.Array:
        model = loaded.merge(leaves)
        return model.logits(model(ids_T, ids_T, ids_T + 1, dense_causal_attend(CONFIG)))

    found = run(narrow)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, run(loaded.leaves), atol=0.1)
