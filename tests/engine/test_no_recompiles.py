"""After warm-up nothing compiles, whatever arrives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine_driver import make_engine

from jaxserve.core.params import SamplingParams
from jaxserve.engine.messages import AddRequest

NUM_REQUESTS = 10_000


@pytest.fixture(scope="module")
def core(tiny_checkpoint):
    return make_engine(tiny_checkpoint, max_model_len=64, kv_cache_memory_bytes=1 << 20, check_inputs=False)


def random_params(rng: np.random.Generator) -> SamplingParams:
    """Any combination of options, the rare and costly ones included."""

    def sometimes(probability, value, otherwise):
        return value if rng.random() < probability else otherwise

    max_tokens = int(rng.integers(1, 5))
    return SamplingParams(
        temperature=sometimes(0.5, float(rng.uniform(0.01, 2)), 0.0),
        top_p=sometimes(0.3, float(rng.uniform(0.1, 1)), 1.0),
        top_k=sometimes(0.3, int(rng.integers(1, 512)), 0),
        min_p=sometimes(0.2, float(rng.uniform(0, 1)), 0.0),
        presence_penalty=sometimes(0.2, float(rng.uniform(-2, 2)), 0.0),
        frequency_penalty=sometimes(0.2, float(rng.uniform(-2, 2)), 0.0),
        repetition_penalty=sometimes(0.2, float(rng.uniform(0.5, 2)), 1.0),
        seed=sometimes(0.5, int(rng.integers(2**62)), None),
        max_tokens=max_tokens,
        min_tokens=int(rng.integers(0, max_tokens + 1)),
        stop_token_ids=sometimes(0.2, rng.integers(0, 512, 5).tolist(), None),
        logprobs=sometimes(0.2, int(rng.integers(0, 21)), None),
        prompt_logprobs=sometimes(0.1, int(rng.integers(0, 21)), None),
        logit_bias=sometimes(0.1, {int(rng.integers(512)): float(rng.uniform(-100, 100))}, None),
        allowed_token_ids=sometimes(0.1, rng.integers(0, 512, 50).tolist(), None),
        bad_words_token_ids=sometimes(0.1, [rng.integers(0, 512, int(rng.integers(1, 4))).tolist()], None),
    )


def test_ten_thousand_random_requests_compile_nothing(core):
    rng = np.random.default_rng(0)
    stem = rng.integers(5, 512, 64).tolist()
    num_sent = num_ended = 0
    while num_ended < NUM_REQUESTS:
        while num_sent < NUM_REQUESTS and num_sent - num_ended < 40:
            shared, own = int(rng.integers(0, 30)), int(rng.integers(1, 30))
            prompt = stem[:shared] + rng.integers(5, 512, own).tolist()
            assert core.add(AddRequest(f"r{num_sent}", prompt, random_params(rng), 0.0)) is None
            num_sent += 1
        if rng.random() < 0.02:
            num_ended += len(core.abort([f"r{num_sent - 1}"]))
        for output in core.step():
            assert output.error is None, output.error
            num_ended += output.finish_reason is not None
    stats = core.stats()
    assert stats.num_compilations_after_warmup == 0
    assert stats.num_used_pages == 0 and stats.num_steps > NUM_REQUESTS // 10


def test_the_counter_would_have_seen_a_compilation(core):
    before = core.stats().num_compilations_after_warmup
    jax.jit(lambda x: jnp.sin(x) * 3)(jnp.ones(17)).block_until_ready()
    assert core.stats().num_compilations_after_warmup > before
