"""The host's side of a sampling row: which biases and counts a request needs on the device, and when they change."""

from collections.abc import Collection, Iterable, Sequence

import numpy as np

from jaxserve.core.params import SamplingParams


class RowSampling:
    """What one running request loads into its row of `SamplingState`.

    bias_V: float32 [V] to load now, or None where nothing is biased (a row of zeros).
    is_settled: no token can change the bias any more, so that none needs to be told.
    counts_V, prompt_mask_V: int32 and bool [V] to load now; both None where the request has no penalties.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_token_ids: Sequence[int],
        output_token_ids: Sequence[int],
        vocab_size: int,
        eos_token_ids: Collection[int],
    ) -> None:
        """prompt and output: all tokens known so far. Ids outside the vocabulary are ignored."""
        self._vocab_size = vocab_size
        self._outputs = list(output_token_ids)
        self._min_tokens = params.min_tokens
        stop_ids = [*(params.stop_token_ids or []), *([] if params.ignore_eos else eos_token_ids)]
        self._stop_ids = frozenset(self._inside(stop_ids))
        words = params.bad_words_token_ids or []
        self._long_words = [tuple(word) for word in words if len(word) > 1]
        self._fixed_V = self._fixed_bias(params, [word[0] for word in words if len(word) == 1])
        self._banned = self._banned_now()
        self.is_settled = self._settled_now()
        needs_bias = self._fixed_V is not None or bool(self._banned)
        self.bias_V: np.ndarray | None = self._dense() if needs_bias else None
        self.has_penalties = (
            params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
        )
        self.counts_V: np.ndarray | None = None
        self.prompt_mask_V: np.ndarray | None = None
        if self.has_penalties:
            self.counts_V = np.zeros(vocab_size, np.int32)
            np.add.at(self.counts_V, self._inside(self._outputs), 1)
            self.prompt_mask_V = np.zeros(vocab_size, np.bool_)
            self.prompt_mask_V[self._inside(prompt_token_ids)] = True

    @property
    def has_bias(self) -> bool:
        """The row holds a bias now: a step with this request must run with `use_bias`."""
        return self._fixed_V is not None or bool(self._banned)

    def update(self, token_id: int) -> np.ndarray | None:
        """Tell that the request sampled this token. The new float32 [V] bias if it changed, else None."""
        self._outputs.append(token_id)
        banned = self._banned_now()
        if banned == self._banned:
            return None
        self._banned, self.is_settled = banned, self._settled_now()
        self.bias_V = self._dense()
        return self.bias_V

    def _settled_now(self) -> bool:
        return not self._long_words and (len(self._outputs) >= self._min_tokens or not self._stop_ids)

    def _inside(self, token_ids: Iterable[int]) -> list[int]:
        return [i for i in token_ids if 0 <= i < self._vocab_size]

    def _fixed_bias(self, params: SamplingParams, bad_ids: list[int]) -> np.ndarray | None:
        """What holds for the whole request: allowed ids, one-token bad words and logit_bias."""
        if params.allowed_token_ids is None and not params.logit_bias and not bad_ids:
            return None
        bias_V = np.zeros(self._vocab_size, np.float32)
        if params.allowed_token_ids is not None:
            bias_V[:] = -np.inf
            bias_V[self._inside(params.allowed_token_ids)] = 0.0
        for token_id in self._inside(params.logit_bias or {}):
            bias_V[token_id] += (params.logit_bias or {})[token_id]
        bias_V[self._inside(bad_ids)] = -np.inf
        return bias_V

    def _banned_now(self) -> frozenset[int]:
        """Ids that only the next token may not be: stops before min_tokens, ends of matching bad words."""
        ends = {word[-1] for word in self._long_words if self._ends_with(word[:-1])}
        banned = frozenset(self._inside(ends))
        return banned | self._stop_ids if len(self._outputs) < self._min_tokens else banned

    def _ends_with(self, prefix: tuple[int, ...]) -> bool:
        return tuple(self._outputs[-len(prefix) :]) == prefix

    def _dense(self) -> np.ndarray:
        bias_V = np.zeros(self._vocab_size, np.float32) if self._fixed_V is None else self._fixed_V.copy()
        bias_V[list(self._banned)] = -np.inf
        return bias_V
