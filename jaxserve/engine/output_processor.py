"""`OutputProcessor`: the engine's token streams in, users' `RequestOutput`s out."""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from jaxserve.core.errors import RequestError
from jaxserve.core.outputs import EngineOutput, FinishReason, Logprob, RequestMetrics, RequestOutput
from jaxserve.core.params import RequestOutputKind, SamplingParams
from jaxserve.engine.completion import Completion, logprob_dict
from jaxserve.engine.messages import AddRequest
from jaxserve.text.tokenizer import Tokenizer

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Processed:
    """request_outputs: at most one a request, exactly one of them in its life with finished True.

    aborts: engine ids of streams that ended here (a stop string) and must be aborted in the engine.
    """

    request_outputs: list[RequestOutput] = field(default_factory=list)
    aborts: list[str] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Live:
    """A request with samples still to come; num_cached_tokens is the first sample's (the others share its prompt)."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    params: SamplingParams
    completions: list[Completion]
    metrics: RequestMetrics
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    num_cached_tokens: int = 0
    prompt_logprobs_are_sent: bool = False
    error: str | None = None
    error_kind: str | None = None

    @property
    def is_finished(self) -> bool:
        return all(completion.finish_reason is not None for completion in self.completions)


class OutputProcessor:
    """Detokenizes, finds stop strings, fans `n` samples out and in. Not thread-safe: one owner.

    tokenizer None: outputs carry token ids only. clock: monotonic seconds.
    """

    def __init__(self, tokenizer: Tokenizer | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._tokenizer = tokenizer
        self._clock = clock
        self._live: dict[str, _Live] = {}
        self._streams: dict[str, tuple[_Live, Completion]] = {}
        # Streams ended here whose last engine output is still to come: it must not reach a new request of the same id.
        self._awaiting_end: set[str] = set()

    @property
    def num_live(self) -> int:
        return len(self._live)

    @property
    def request_ids(self) -> list[str]:
        """Requests that have not had their last output."""
        return list(self._live)

    def add(
        self,
        request_id: str,
        prompt: str | None,
        prompt_token_ids: list[int],
        params: SamplingParams,
        arrival_time_s: float | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> list[AddRequest]:
        """Register a request; returns the engine's token streams, `params.n` of them.

        A request of one sample keeps its id in the engine, sample i of several is `{request_id}_{i}`.
        Raises RequestError where one of these ids is in use.
        """
        arrival = self._clock() if arrival_time_s is None else arrival_time_s
        engine_ids = [request_id] if params.n == 1 else [f"{request_id}_{index}" for index in range(params.n)]
        if request_id in self._live or any(engine_id in self._streams for engine_id in engine_ids):
            raise RequestError(f"request_id {request_id!r} is in use by a running request", param="request_id")
        completions = [
            Completion(index, engine_id, self._tokenizer, prompt_token_ids, params)
            for index, engine_id in enumerate(engine_ids)
        ]
        live = _Live(
            request_id,
            prompt,
            prompt_token_ids,
            params,
            completions,
            RequestMetrics(arrival_time_s=arrival),
            None if params.prompt_logprobs is None else [None],
        )
        self._live[request_id] = live
        self._streams |= {completion.engine_id: (live, completion) for completion in completions}
        return [
            AddRequest(engine_id, prompt_token_ids, _sample_params(params, index), arrival, priority, cache_salt)
            for index, engine_id in enumerate(engine_ids)
        ]

    def process(self, outputs: Iterable[EngineOutput]) -> Processed:
        """Take one step's news. Outputs of unknown, aborted and ended streams are dropped."""
        done = Processed()
        touched: dict[str, _Live] = {}
        for news in outputs:
            if news.request_id in self._awaiting_end:
                if news.finish_reason is not None:
                    self._awaiting_end.discard(news.request_id)
                continue
            live, completion = self._streams.get(news.request_id, (None, None))
            if live is None or completion is None:
                continue
            self._take(live, completion, news)
            if completion.finish_reason is not None and not completion.has_left_engine:
                done.aborts.append(completion.engine_id)
            self._close_ended(live)
            touched[live.request_id] = live
        for live in touched.values():
            output = self._render(live)
            if output is not None:
                done.request_outputs.append(output)
        return done

    def abort(self, request_ids: Iterable[str]) -> tuple[list[str], list[RequestOutput]]:
        """End requests: (engine ids to abort, their last outputs). Unknown and ended ids are ignored."""
        engine_ids: list[str] = []
        outputs: list[RequestOutput] = []
        for request_id in request_ids:
            live = self._live.get(request_id)
            if live is not None:
                engine_ids += [one.engine_id for one in live.completions if one.finish_reason is None]
                outputs.append(self._end(live, FinishReason.ABORT))
        return engine_ids, outputs

    def fail_all(self, message: str, error_kind: str | None = None) -> list[RequestOutput]:
        """End every request with an error: the engine is gone and will answer none of them."""
        outputs: list[RequestOutput] = []
        for live in list(self._live.values()):
            live.error, live.error_kind = message, error_kind
            outputs.append(self._end(live, FinishReason.ERROR))
        self._awaiting_end.clear()
        return outputs

    def forget(self, request_id: str) -> None:
        """Undo `add` for a request that never reached the engine. It gets no output."""
        live = self._live.pop(request_id, None)
        for completion in live.completions if live else ():
            self._streams.pop(completion.engine_id, None)

    def _take(self, live: _Live, completion: Completion, news: EngineOutput) -> None:
        try:
            self._note(live, completion, news)
            completion.add(news)
        except Exception:  # the edge between one request and all others: its own text must not end their streams
            _log.exception("request %s: its output could not be processed", live.request_id)
            completion.has_left_engine = news.finish_reason is not None
            completion.fail()
            live.error = "internal error while the output was turned into text"

    def _note(self, live: _Live, completion: Completion, news: EngineOutput) -> None:
        """What concerns the request as a whole: times, cached tokens, prompt log probabilities, errors."""
        metrics = live.metrics
        if news.new_token_ids and metrics.time_to_first_token_s is None:
            metrics.time_to_first_token_s = self._clock() - metrics.arrival_time_s
            metrics.queue_time_s, metrics.prefill_time_s = news.queue_time_s, news.prefill_time_s
        if completion.index == 0 and completion.num_tokens == 0:
            live.num_cached_tokens = min(news.num_cached_tokens, len(live.prompt_token_ids))
        if completion.index == 0 and live.prompt_logprobs is not None and news.prompt_logprobs:
            tokenizer = self._tokenizer if live.params.detokenize else None
            live.prompt_logprobs += [logprob_dict(entry, tokenizer) for entry in news.prompt_logprobs]
        if news.finish_reason is FinishReason.ERROR:
            live.error, live.error_kind = news.error or "the engine failed on this request", news.error_kind

    def _end(self, live: _Live, reason: FinishReason) -> RequestOutput:
        for completion in live.completions:
            if completion.finish_reason is None:
                completion.end(reason)
        self._close_ended(live)
        output = self._render(live)
        assert output is not None, f"request {live.request_id} had its last output before"
        return output

    def _close_ended(self, live: _Live) -> None:
        """Let go of ended streams; those that the engine still runs are remembered until it confirms their end."""
        for completion in live.completions:
            is_open = completion.engine_id in self._streams
            if is_open and completion.finish_reason is not None:
                del self._streams[completion.engine_id]
                if not completion.has_left_engine:
                    self._awaiting_end.add(completion.engine_id)

    def _render(self, live: _Live) -> RequestOutput | None:
        """The request's next output, or None while there is nothing to send."""
        params, finished = live.params, live.is_finished
        interval = params.stream_interval or 1
        if finished:
            live.metrics.finished_time_s = self._clock()
            del self._live[live.request_id]
        elif params.output_kind is RequestOutputKind.FINAL_ONLY or not any(
            completion.is_due(interval) for completion in live.completions
        ):
            return None
        live.metrics.num_preemptions = sum(completion.num_preemptions for completion in live.completions)
        if params.output_kind is RequestOutputKind.DELTA:
            completions = [one.news() for one in live.completions if one.is_due(interval)]
        else:
            completions = [one.so_far() for one in live.completions]
        return RequestOutput(
            request_id=live.request_id,
            prompt=live.prompt,
            prompt_token_ids=live.prompt_token_ids,
            outputs=completions,
            finished=finished,
            prompt_logprobs=_due_prompt_logprobs(live),
            metrics=live.metrics,
            num_cached_tokens=live.num_cached_tokens,
            error=live.error if finished else None,
            error_kind=live.error_kind if finished else None,
        )


def _due_prompt_logprobs(live: _Live) -> list[dict[int, Logprob] | None] | None:
    """All of them once they are complete; in DELTA mode once only."""
    entries = live.prompt_logprobs
    if entries is None or len(entries) < len(live.prompt_token_ids):
        return None
    if live.params.output_kind is RequestOutputKind.DELTA and live.prompt_logprobs_are_sent:
        return None
    live.prompt_logprobs_are_sent = True
    return entries


def _sample_params(params: SamplingParams, index: int) -> SamplingParams:
    """What sample `index` runs with. The first one alone scores the prompt: scoring computes every position anew."""
    child = params.for_child(index)
    if index and params.prompt_logprobs is not None:
        return replace(child, prompt_logprobs=None, skip_reading_prefix_cache=None)
    return child if params.prompt_logprobs is None else replace(child, skip_reading_prefix_cache=True)
