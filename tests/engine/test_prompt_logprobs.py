"""Log probabilities of prompts through the real engine against the plain model: tiles, chunks and crowds."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine_driver import Driver, Wish, make_engine

from jaxserve.core.params import SamplingParams
from jaxserve.layers.dense_attention import dense_causal_attend
from jaxserve.models.weights import load_params


def plain_logprobs(core, prompt):
    """[T - 1, V]: of each next token of the prompt."""
    config = core.config
    loaded = load_params(config.model, Path(config.model_path))
    model = loaded.merge(loaded.leaves)
    positions = jnp.arange(len(prompt))
    rope_lens = jnp.full(len(prompt), len(prompt))
    hidden = model(jnp.asarray(prompt), positions, rope_lens, dense_causal_attend(config.model))
    return np.asarray(jax.nn.log_softmax(model.logits(hidden), axis=-1))[:-1]


@pytest.mark.parametrize("budget", [32, 150, 200])
def test_equal_the_plain_model_whatever_the_tiles_and_chunks(tiny_checkpoint, budget):
    """32: every chunk in one tile. 150, 200: several tiles, the last one of the largest bucket not full."""
    core = make_engine(tiny_checkpoint, max_num_batched_tokens=budget, kv_cache_memory_bytes=4 << 20)
    rng = np.random.default_rng(budget)
    prompts = [rng.integers(5, 512, length).tolist() for length in (190, 2, 64, 65, 130, 1)]
    asks = SamplingParams(max_tokens=3, temperature=0.0, prompt_logprobs=2)
    silent = Wish(prompts[3], SamplingParams(max_tokens=3, temperature=0.0))
    answers = Driver(core).run([*(Wish(prompt, asks, arrives=i % 3) for i, prompt in enumerate(prompts)), silent])
    assert answers.pop().prompt_logprobs == []
    for prompt, answer in zip(prompts, answers, strict=True):
        entries, plain = answer.prompt_logprobs, plain_logprobs(core, prompt)
        assert [entry.token_id for entry in entries] == prompt[1:]
        got = [entry.logprob for entry in entries]
        np.testing.assert_allclose(got, plain[np.arange(len(got)), prompt[1:]], atol=1e-4)
        best = [entry.top_logprobs for entry in entries] if entries else np.zeros((0, 2))
        np.testing.assert_allclose(best, -np.sort(-plain, axis=-1)[:, :2], atol=1e-4)
