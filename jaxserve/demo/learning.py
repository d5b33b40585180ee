"""The arithmetic of training: parameters of the serving model, its loss, and AdamW in plain JAX."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxserve.core.config import ModelConfig
from jaxserve.layers.dense_attention import dense_causal_attend
from jaxserve.models.llama import Llama

type Params = dict[str, Array]
"""Dotted parameter path, as `Llama.checkpoint_layout` names it -> float32 array."""
type Loss = Callable[[Params, Int[Array, "B T"], Bool[Array, "B T"]], Float[Array, ""]]

BETA_1, BETA_2, EPSILON = 0.9, 0.95, 1e-8
WEIGHT_DECAY = 0.05
MAX_GRADIENT_NORM = 1.0


def _skeleton(config: ModelConfig) -> tuple[nnx.GraphDef[Llama], nnx.State[Any, Any], dict[str, tuple[int, ...]]]:
    """The model without values: its graph, its state, and path and shape of each parameter in leaf order."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Llama(config)))
    names = [".".join(str(part) for part in path) for path, _ in nnx.to_flat_state(state)]
    shapes = [leaf.shape for leaf in jax.tree.leaves(state)]
    return graph, state, dict(zip(names, shapes, strict=True))


def initial_params(config: ModelConfig, key: Array) -> Params:
    """Norms one; matrices normal with deviation 0.02, those that write to the residual stream less."""
    _, _, shapes = _skeleton(config)
    params: Params = {}
    for (name, shape), part in zip(shapes.items(), jax.random.split(key, len(shapes)), strict=True):
        if len(shape) == 1:
            params[name] = jnp.ones(shape, jnp.float32)
            continue
        writes = name.endswith(("attention.o.weight", "down.weight"))
        deviation = 0.02 / math.sqrt(2 * config.num_layers) if writes else 0.02
        params[name] = deviation * jax.random.normal(part, shape, jnp.float32)
    return params


def named_params(config: ModelConfig, leaves: Sequence[Array]) -> Params:
    """The leaves of a loaded model (`LoadedModel.leaves`) under their paths."""
    _, _, shapes = _skeleton(config)
    return dict(zip(shapes, leaves, strict=True))


def make_loss(config: ModelConfig) -> Loss:
    """Mean cross entropy (nats) over the learned tokens of a batch, through the model that also serves."""
    graph, state, shapes = _skeleton(config)
    tree = jax.tree.structure(state)
    attend = dense_causal_attend(config)

    def loss(params: Params, token_ids_BT: Int[Array, "B T"], learned_BT: Bool[Array, "B T"]) -> Float[Array, ""]:
        model = nnx.merge(graph, jax.tree.unflatten(tree, [params[name] for name in shapes]))
        num_tokens = token_ids_BT.shape[1] - 1
        positions_T = jnp.arange(num_tokens)
        rope_lens_T = jnp.full((num_tokens,), num_tokens)

        def row_logits(token_ids_T: Int[Array, "T"]) -> Float[Array, "T V"]:
            return model.logits(model(token_ids_T, positions_T, rope_lens_T, attend))

        logits_BTV = jax.vmap(row_logits)(token_ids_BT[:, :-1])
        targets_BT = token_ids_BT[:, 1:]
        chosen_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
        surprise_BT = jax.nn.logsumexp(logits_BTV, axis=-1) - chosen_BT
        weight_BT = learned_BT[:, 1:].astype(jnp.float32)
        return jnp.sum(surprise_BT * weight_BT) / jnp.maximum(jnp.sum(weight_BT), 1.0)

    return loss


class AdamW:
    """Adam with decoupled weight decay on the matrices; the gradient's norm is cut at MAX_GRADIENT_NORM."""

    def __init__(self, loss: Loss, params: Params) -> None:
        self.params = params
        self._first = jax.tree.map(jnp.zeros_like, params)
        self._second = jax.tree.map(jnp.zeros_like, params)
        self._num_steps = 0
        self._update = jax.jit(_make_update(loss), donate_argnums=(0, 1, 2))

    def step(self, token_ids_BT: Int[Array, "B T"], learned_BT: Bool[Array, "B T"], rate: float) -> Float[Array, ""]:
        """One update with learning rate `rate`; returns the loss before it."""
        self._num_steps += 1
        self.params, self._first, self._second, loss = self._update(
            self.params, self._first, self._second, token_ids_BT, learned_BT, rate, float(self._num_steps)
        )
        return loss


def _make_update(loss: Loss) -> Callable[..., tuple[Params, Params, Params, Float[Array, ""]]]:
    def update(
        params: Params,
        first: Params,
        second: Params,
        token_ids_BT: Int[Array, "B T"],
        learned_BT: Bool[Array, "B T"],
        rate: Float[Array, ""],
        step: Float[Array, ""],
    ) -> tuple[Params, Params, Params, Float[Array, ""]]:
        value, gradients = jax.value_and_grad(loss)(params, token_ids_BT, learned_BT)
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(gradient)) for gradient in gradients.values()))
        shrink = jnp.minimum(1.0, MAX_GRADIENT_NORM / (norm + 1e-6))
        first = jax.tree.map(lambda m, g: BETA_1 * m + (1 - BETA_1) * g * shrink, first, gradients)
        second = jax.tree.map(lambda v, g: BETA_2 * v + (1 - BETA_2) * jnp.square(g * shrink), second, gradients)
        correct_1, correct_2 = 1 - BETA_1**step, 1 - BETA_2**step

        def moved(x: Array, m: Array, v: Array) -> Array:
            decay = WEIGHT_DECAY if x.ndim > 1 else 0.0
            return x - rate * (m / correct_1 / (jnp.sqrt(v / correct_2) + EPSILON) + decay * x)

        return jax.tree.map(moved, params, first, second), first, second, value

    return update


def learning_rate(progress: float, peak: float, warmup: float = 0.03) -> float:
    """A linear rise over the first `warmup` of the training, then a cosine down to 2 % of `peak`."""
    if progress < warmup:
        return peak * (progress + 1e-3) / (warmup + 1e-3)
    share = min(1.0, (progress - warmup) / (1 - warmup))
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))
