"""From prompts to outputs: sampling parameters, the engine's streams, their merging and their measurement."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, cast
from uuid import uuid4

from jaxserve.core.outputs import RequestOutput
from jaxserve.core.params import RequestOutputKind, SamplingParams
from server.context import ServerContext
from server.errors import ApiError, as_api_error
from server.metrics import RequestRecord
from server.protocol import GenerationBody


@dataclass(slots=True)
class Job:
    """One prompt of a request. text: the prompt as the client wrote it, None for token ids."""

    index: int
    request_id: str
    text: str | None
    token_ids: list[int]
    params: SamplingParams


def public_id(prefix: str, body: GenerationBody) -> str:
    """The answer's id: the client's own request_id if it sent one."""
    return f"{prefix}-{body.request_id or uuid4().hex}"


def engine_id(answer_id: str, index: int) -> str:
    """Unique among running requests, whatever ids clients choose."""
    return f"{answer_id}-{index}-{uuid4().hex[:8]}"


def sampling_params(
    context: ServerContext, body: GenerationBody, fixed: dict[str, Any], max_tokens: int | None = 16
) -> SamplingParams:
    """The body's fields over the checkpoint's defaults over the endpoint's max_tokens.

    fixed: what the endpoint makes of the body. Raises RequestError or ApiError.
    """
    _check_counts(context, body)
    given: dict[str, Any] = {"max_tokens": max_tokens, **context.engine.default_sampling}
    for name in GenerationBody.SAMPLING:
        value = getattr(body, name)
        if value is not None:
            given[name] = value
    if body.logit_bias is not None:
        given["logit_bias"] = {_token_id(key): value for key, value in body.logit_bias.items()}
    asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    if asked is not None:
        given["max_tokens"] = asked
    kind = RequestOutputKind.DELTA if body.stream else RequestOutputKind.FINAL_ONLY
    asked_for: dict[str, Any] = {**given, **fixed, "output_kind": kind}
    return SamplingParams(**asked_for)


def _token_id(key: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) < 20):
        raise ApiError(400, "the keys of logit_bias must be token ids: whole numbers of at least 0", param="logit_bias")
    return int(key)


def _check_counts(context: ServerContext, body: GenerationBody) -> None:
    limit = context.args.max_n
    if body.n is not None and body.n > limit:
        raise ApiError(400, f"n is {body.n}, more than the {limit} samples this server makes", param="n")
    num_stops = len(body.stop) if isinstance(body.stop, list) else 0
    if num_stops > context.args.max_stop_strings:
        message = f"stop has {num_stops} strings, at most {context.args.max_stop_strings} are allowed"
        raise ApiError(400, message, param="stop")
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options needs stream: true", param="stream_options")
    if body.stream and body.prompt_logprobs is not None:
        raise ApiError(400, "prompt_logprobs are not available with stream: true", param="prompt_logprobs")


class Watch:
    """Measures one job for the metrics, from its arrival to its last output."""

    def __init__(self, context: ServerContext, job: Job, arrival_s: float) -> None:
        self._context = context
        self._job = job
        self._arrival_s = arrival_s
        self._last_s: dict[int, float] = {}
        self._num_tokens = 0
        self._reasons: list[str] = []

    def note(self, output: RequestOutput) -> None:
        now_s = time.monotonic()
        streams = self._job.params.output_kind is RequestOutputKind.DELTA
        for completion in output.outputs:
            num_new = len(completion.token_ids)
            self._num_tokens += num_new
            last_s = self._last_s.get(completion.index)
            if streams and num_new and last_s is not None:
                for _ in range(num_new):
                    self._context.metrics.note_gap((now_s - last_s) / num_new)
            if num_new:
                self._last_s[completion.index] = now_s
            if completion.finish_reason is not None:
                self._reasons.append(completion.finish_reason)
        if output.finished:
            self._finish(output, now_s)

    def _finish(self, output: RequestOutput, now_s: float) -> None:
        times = output.metrics
        params = self._job.params
        record = RequestRecord(
            num_prompt_tokens=len(self._job.token_ids),
            num_output_tokens=self._num_tokens,
            num_samples=params.n,
            max_tokens=params.max_tokens,
            e2e_s=now_s - self._arrival_s,
            ttft_s=times.time_to_first_token_s if times else None,
            queue_s=times.queue_time_s if times else None,
            prefill_s=times.prefill_time_s if times else None,
            finish_reasons=tuple(self._reasons),
        )
        self._context.metrics.note_finished(record)


async def outputs_of(
    context: ServerContext, jobs: Sequence[Job], body: GenerationBody
) -> AsyncGenerator[tuple[Job, RequestOutput]]:
    """Outputs of all jobs as they come. Closing the generator early aborts what still runs."""
    try:
        if len(jobs) == 1:
            async with aclosing(_outputs_of_one(context, jobs[0], body)) as outputs:
                async for output in outputs:
                    yield jobs[0], output
        else:
            async with aclosing(_merged(context, jobs, body)) as merged:
                async for pair in merged:
                    yield pair
    except (GeneratorExit, asyncio.CancelledError):
        context.metrics.note_request("abort")
        raise
    except Exception as error:
        answer = as_api_error(error)
        context.metrics.note_request("error", answer.code or answer.type)
        raise
    context.metrics.note_request("success")


async def _outputs_of_one(context: ServerContext, job: Job, body: GenerationBody) -> AsyncGenerator[RequestOutput]:
    engine = context.engine
    watch = Watch(context, job, time.monotonic())
    # An async generator by its definition; only that can be closed.
    stream = cast(
        AsyncGenerator[RequestOutput],
        engine.generate(
            {"prompt_token_ids": job.token_ids},
            job.params,
            job.request_id,
            priority=body.priority or 0,
            cache_salt=body.cache_salt,
        ),
    )
    async with aclosing(stream) as outputs:
        async for output in outputs:
            watch.note(output)
            yield output


async def _merged(
    context: ServerContext, jobs: Sequence[Job], body: GenerationBody
) -> AsyncGenerator[tuple[Job, RequestOutput]]:
    news: asyncio.Queue[tuple[Job, RequestOutput | Exception | None]] = asyncio.Queue()

    async def pump(job: Job) -> None:
        try:
            async with aclosing(_outputs_of_one(context, job, body)) as outputs:
                async for output in outputs:
                    news.put_nowait((job, output))
            news.put_nowait((job, None))
        except Exception as error:
            news.put_nowait((job, error))

    tasks = [asyncio.create_task(pump(job)) for job in jobs]
    try:
        num_open = len(tasks)
        while num_open:
            job, item = await news.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                num_open -= 1
            else:
                yield job, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Usage:
    """Token counts of one answer: prompts once each, outputs of all samples (none where outputs are not shown)."""

    def __init__(self, jobs: Sequence[Job], shows_outputs: bool = True) -> None:
        self._shows_outputs = shows_outputs
        self._num_prompt_tokens = sum(len(job.token_ids) for job in jobs)
        self._num_cached: dict[int, int] = {}
        self._num_output_tokens = 0

    def note(self, job: Job, output: RequestOutput) -> None:
        """Each output counts once: a delta, or the only one of its job."""
        self._num_cached[job.index] = output.num_cached_tokens
        if self._shows_outputs:
            self._num_output_tokens += sum(len(completion.token_ids) for completion in output.outputs)

    def value(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self._num_prompt_tokens,
            "completion_tokens": self._num_output_tokens,
            "total_tokens": self._num_prompt_tokens + self._num_output_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(self._num_cached.values())},
        }
