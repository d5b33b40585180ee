"""Driving an `EngineCore` by hand: requests in at chosen steps, tokens out, ledgers checked after every step."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxserve.core.config import EngineArgs
from jaxserve.core.outputs import EngineOutput, FinishReason
from jaxserve.core.params import SamplingParams
from jaxserve.engine.core import EngineCore
from jaxserve.engine.messages import AddRequest
from jaxserve.layers.dense_attention import dense_causal_attend
from jaxserve.models.weights import load_params
from jaxserve.sampling.batch import SamplingBatch
from jaxserve.sampling.rows import RowSampling
from jaxserve.sampling.sampler import sample
from jaxserve.sampling.state import empty_state, load_row
from pallas_kernels import write_kv


@dataclass
class Wish:
    """One request of a trial. arrives: step of its arrival; leaves: step at which it is aborted, if any."""

    prompt: list[int]
    params: SamplingParams
    arrives: int = 0
    leaves: int | None = None
    priority: int = 0
    salt: str | None = None


@dataclass
class Answer:
    """All that came back of one request."""

    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    num_preemptions: int = 0
    num_cached_tokens: int = 0
    logprobs: list[Any] = field(default_factory=list)
    prompt_logprobs: list[Any] = field(default_factory=list)
    error: str | None = None


def make_engine(model: Any, **args: Any) -> EngineCore:
    """An engine with few buckets, small pages and every check switched on."""
    defaults: dict[str, Any] = dict(max_num_seqs=8, max_num_batched_tokens=32, page_size=4, check_inputs=True)
    return EngineCore(EngineArgs(model=str(model), **(defaults | args)), lambda line: None)


class Driver:
    """Runs wishes through an engine; `num_steps` counts all steps it ever made."""

    def __init__(self, core: EngineCore) -> None:
        self.core = core
        self.num_steps = 0
        self._num_requests = 0

    def run(self, wishes: list[Wish], on_step: Callable[[int], None] | None = None) -> list[Answer]:
        """Serve all wishes to their end. Asserts the ledgers after each step and that no page leaks."""
        names = [f"r{self._num_requests + i}" for i in range(len(wishes))]
        self._num_requests += len(wishes)
        answers = {name: Answer() for name in names}
        step = 0
        while self.core.has_work or step <= max((w.arrives for w in wishes), default=0):
            for name, wish in zip(names, wishes, strict=True):
                if wish.arrives == step:
                    message = AddRequest(name, wish.prompt, wish.params, 0.0, wish.priority, wish.salt)
                    refused = self.core.add(message)
                    assert refused is None, refused
                if wish.leaves == step:
                    self._collect(answers, self.core.abort([name]))
            if on_step is not None:
                on_step(step)
            self._collect(answers, self.core.step())
            self.core.scheduler.check()
            step += 1
            assert step < 5000, "no progress"
        self.num_steps += step
        stats = self.core.stats()
        assert stats.num_used_pages == stats.num_running == stats.num_waiting == 0
        assert all(answer.finish_reason is not None for answer in answers.values())
        return [answers[name] for name in names]

    def alone(self, wish: Wish) -> Answer:
        """The wish by itself, with nothing read from the prefix cache."""
        self.core.scheduler.reset_prefix_cache()
        return self.run([Wish(wish.prompt, wish.params)])[0]

    def _collect(self, answers: dict[str, Answer], outputs: list[EngineOutput]) -> None:
        for output in outputs:
            answer = answers[output.request_id]
            assert answer.finish_reason is None, "news after the terminal output"
            answer.token_ids += output.new_token_ids
            answer.logprobs += output.logprobs or []
            answer.prompt_logprobs += output.prompt_logprobs or []
            answer.num_preemptions = output.num_preemptions
            answer.num_cached_tokens = output.num_cached_tokens
            answer.finish_reason, answer.error = output.finish_reason, output.error


class TieJudge:
    """Tells a true difference from a tie: float32 sums differ in the last bits between batch shapes.

    A divergence is excused only if the plain model, without pages or batches, has both tokens
    within `epsilon` of each other at that very position, sampler and noise included. Its keys and values
    are rounded as the engine's pool rounds them.
    """

    def __init__(self, core: EngineCore, epsilon: float = 1e-4) -> None:
        self._config, self._scales_L2K = core.config, core.runner._kv_scales_L2K
        loaded = load_params(core.config.model, Path(core.config.model_path))
        self._model = loaded.merge(loaded.leaves)
        self._epsilon = epsilon
        self.num_ties = 0

    def assert_same(self, wish: Wish, got: list[int], want: list[int]) -> None:
        """got and want agree, or part at a tie; a shorter list must be a prefix only if it was cut by the caller."""
        for i, (a, b) in enumerate(zip(got, want, strict=False)):
            if a != b:
                prefix = want[:i]
                assert self._picks(wish, prefix, a) and self._picks(wish, prefix, b), (
                    f"token {i} is {a}, alone {b}; prompt {wish.prompt}, after {prefix}, {wish.params}"
                )
                self.num_ties += 1
                return
        assert len(got) == len(want), (got, want, wish.params)

    def _picks(self, wish: Wish, prefix: list[int], token: int) -> bool:
        """Whether the sampler takes `token` if its logit is raised by epsilon."""
        logits_V = np.array(self._logits(wish.prompt, prefix))
        logits_V[token] += self._epsilon
        params, vocab = wish.params, self._config.model.vocab_size
        row = RowSampling(params, wish.prompt, prefix, vocab, self._config.model.eos_token_ids)
        zeros = np.zeros(vocab, np.float32)
        state = load_row(
            empty_state(1, vocab),
            jnp.int32(0),
            jnp.asarray(row.bias_V if row.bias_V is not None else zeros),
            jnp.asarray(row.counts_V if row.counts_V is not None else zeros.astype(np.int32)),
            jnp.asarray(row.prompt_mask_V if row.prompt_mask_V is not None else zeros.astype(np.bool_)),
        )
        sampled, _ = sample(jnp.asarray(logits_V)[None], _one_row(params, len(wish.prompt) + len(prefix)), state, 1)
        return int(sampled.token_ids_B[0]) == token

    def _logits(self, prompt: list[int], prefix: list[int]) -> np.ndarray:
        ids = jnp.asarray(prompt + prefix, jnp.int32)
        positions = jnp.arange(len(ids))
        hidden = self._model(ids, positions, jnp.maximum(positions + 1, len(prompt)), self._attend)
        return np.asarray(self._model.logits(hidden[-1:]))[0]

    def _attend(self, layer: int, q_TNH: Any, k_TKH: Any, v_TKH: Any) -> Any:
        num_tokens, num_heads, head_dim = k_TKH.shape
        scale_2K = jnp.ones((2, num_heads)) if self._scales_L2K is None else jnp.asarray(self._scales_L2K[layer])
        page = jnp.zeros((1, 2, num_heads, num_tokens, head_dim), self._config.pool.dtype)
        page = write_kv(page, k_TKH, v_TKH, jnp.arange(num_tokens), scale_2K)
        k_TKH, v_TKH = (page[0].astype(jnp.float32) * scale_2K[:, :, None, None]).transpose(0, 2, 1, 3)
        return dense_causal_attend(self._config.model)(layer, q_TNH, k_TKH, v_TKH)


def _one_row(params: SamplingParams, position: int) -> SamplingBatch:
    seed = (params.seed or 0) & 0xFFFF_FFFF_FFFF_FFFF

    def floats(value: float) -> Any:
        return jnp.full((1,), value, jnp.float32)

    return SamplingBatch(
        rows_B=jnp.zeros(1, jnp.int32),
        is_active_B=jnp.ones(1, jnp.bool_),
        positions_B=jnp.full((1,), position, jnp.int32),
        seeds_B2=jnp.asarray(np.array([[seed >> 32, seed & 0xFFFF_FFFF]], np.uint32)),
        temperature_B=floats(params.temperature),
        top_p_B=floats(params.top_p),
        min_p_B=floats(params.min_p),
        repetition_B=floats(params.repetition_penalty),
        presence_B=floats(params.presence_penalty),
        frequency_B=floats(params.frequency_penalty),
        top_k_B=jnp.full((1,), max(params.top_k, 0), jnp.int32),
        use_random=jnp.asarray(params.temperature > 0),
        use_filters=jnp.asarray(True),
        use_penalties=jnp.asarray(True),
        use_bias=jnp.asarray(True),
        use_logprobs=jnp.asarray(False),
    )
