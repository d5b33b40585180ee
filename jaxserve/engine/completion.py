"""`Completion`: one sample of a request as it grows: tokens, text, log probabilities, its end."""

from jaxserve.core.outputs import CompletionOutput, EngineOutput, FinishReason, Logprob, TokenLogprobs
from jaxserve.core.params import SamplingParams
from jaxserve.text.detokenizer import IncrementalDetokenizer
from jaxserve.text.stop import StopChecker
from jaxserve.text.tokenizer import Tokenizer


class Completion:
    """Fed by the engine's outputs of one token stream; read as everything so far or as what is new.

    engine_id: the stream's id in the engine. finish_reason: set once. has_left_engine: the engine
    itself ended it (a stop string ends it here first, and the engine must still be told).
    """

    def __init__(
        self,
        index: int,
        engine_id: str,
        tokenizer: Tokenizer | None,
        prompt_token_ids: list[int],
        params: SamplingParams,
    ) -> None:
        self.index = index
        self.engine_id = engine_id
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None
        self.has_left_engine = False
        self.num_preemptions = 0
        self._params = params
        self._tokenizer = tokenizer if params.detokenize else None
        self._detokenizer = self._tokenizer and IncrementalDetokenizer(
            self._tokenizer, prompt_token_ids, params.skip_special_tokens, params.spaces_between_special_tokens
        )
        stop = [params.stop] if isinstance(params.stop, str) else params.stop or []
        self._stop = StopChecker(stop if params.detokenize else [], params.include_stop_str_in_output)
        self._token_ids: list[int] = []
        self._texts: list[str] = []
        self._logprobs: list[dict[int, Logprob]] | None = None if params.logprobs is None else []
        self._cumulative_logprob = 0.0
        self._num_sent_tokens = 0
        self._num_sent_texts = 0
        self._end_is_sent = False

    @property
    def num_tokens(self) -> int:
        return len(self._token_ids)

    def add(self, news: EngineOutput) -> None:
        """Take one step's news. Tokens after the one that completes a stop string are dropped."""
        self.num_preemptions = news.num_preemptions
        self.has_left_engine = news.finish_reason is not None
        hides_last = news.finish_reason is FinishReason.STOP and not self._params.include_stop_str_in_output
        num_shown = len(news.new_token_ids) - (1 if hides_last else 0)
        for position, token_id in enumerate(news.new_token_ids):
            self._token_ids.append(token_id)
            if self._logprobs is not None and news.logprobs is not None:
                entry = news.logprobs[position]
                self._logprobs.append(logprob_dict(entry, self._tokenizer))
                self._cumulative_logprob += entry.logprob
            if self._detokenizer is not None and position < num_shown:
                self._show(self._detokenizer.push([token_id]), may_stop=self.num_tokens >= self._params.min_tokens)
                if self.finish_reason is not None:
                    return
        if news.finish_reason is not None:
            self.end(news.finish_reason, news.stop_reason)

    def end(self, reason: FinishReason, stop_reason: int | str | None = None) -> None:
        """End the sample and release its held text; nothing is added after this."""
        if self._detokenizer is not None:
            is_regular = reason in (FinishReason.STOP, FinishReason.LENGTH)
            self._show(self._detokenizer.finish(), may_stop=is_regular)
            self._texts.append(self._stop.finish())
        if self.finish_reason is None:
            self.finish_reason, self.stop_reason = reason, stop_reason

    def fail(self) -> None:
        """End the sample with an error, its held text given up."""
        self.finish_reason, self.stop_reason = FinishReason.ERROR, None

    def is_due(self, stream_interval: int) -> bool:
        """Whether there is something to send: the first token, stream_interval more of them, or the end."""
        if self.finish_reason is not None:
            return not self._end_is_sent
        num_new = self.num_tokens - self._num_sent_tokens
        return num_new > 0 and (self._num_sent_tokens == 0 or num_new >= stream_interval)

    def so_far(self) -> CompletionOutput:
        """Everything so far; marks it as sent."""
        self._texts = ["".join(self._texts)]
        return self._output(self._texts[0], 0)

    def news(self) -> CompletionOutput:
        """What came since the last `news` or `so_far`; marks it as sent."""
        return self._output("".join(self._texts[self._num_sent_texts :]), self._num_sent_tokens)

    def _show(self, text: str, may_stop: bool) -> None:
        if not text:
            return
        self._texts.append(self._stop.push(text, may_stop))
        if self._stop.matched is not None:
            self.finish_reason, self.stop_reason = FinishReason.STOP, self._stop.matched

    def _output(self, text: str, start: int) -> CompletionOutput:
        self._num_sent_tokens, self._num_sent_texts = len(self._token_ids), len(self._texts)
        self._end_is_sent = self.finish_reason is not None
        return CompletionOutput(
            index=self.index,
            text=text,
            token_ids=self._token_ids[start:],
            cumulative_logprob=None if self._logprobs is None else self._cumulative_logprob,
            logprobs=None if self._logprobs is None else self._logprobs[start:],
            finish_reason=None if self.finish_reason is None else str(self.finish_reason),
            stop_reason=self.stop_reason,
        )


def logprob_dict(entry: TokenLogprobs, tokenizer: Tokenizer | None) -> dict[int, Logprob]:
    """One position's candidates: the token that is in the sequence first, then the most likely, best first."""

    def text(token_id: int) -> str | None:
        return tokenizer.token_text(token_id) if tokenizer is not None else None

    candidates = {entry.token_id: Logprob(entry.logprob, entry.rank, text(entry.token_id))}
    for rank, (token_id, logprob) in enumerate(zip(entry.top_ids, entry.top_logprobs, strict=True), start=1):
        candidates.setdefault(token_id, Logprob(logprob, rank, text(token_id)))
    return candidates
