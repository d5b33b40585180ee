"""`AsyncEngine`: many requests at once from one event loop, each an async iterator of `RequestOutput`."""

import asyncio
import contextlib
import itertools
import logging
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import msgspec

from jaxserve.core.config import EngineArgs
from jaxserve.core.errors import EngineDead, EngineError, ReplicaLost
from jaxserve.core.outputs import RequestOutput
from jaxserve.core.params import SamplingParams
from jaxserve.engine.client import AttachableClient, Progress, ThreadClient
from jaxserve.engine.default_sampling import default_sampling
from jaxserve.engine.fleet_client import process_client
from jaxserve.engine.input_processor import InputProcessor, Prompt
from jaxserve.engine.messages import (
    AbortRequests,
    Call,
    CallResult,
    EngineFailed,
    EngineInfo,
    FromEngine,
    Outputs,
    SchedulerStats,
)
from jaxserve.engine.output_processor import OutputProcessor
from jaxserve.engine.output_queue import PendingOutput, error_of
from jaxserve.engine.stats_log import LOG_INTERVAL_S, StatsLog
from jaxserve.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

STATS_TIMEOUT_S = 1.0  # a step may take long; then the last snapshot has to do
DRAIN_CHECK_S = 0.02
LONG_PROMPT_CHARS = 16 * 1024  # longer ones are tokenized beside the event loop
NUM_TOKENIZER_THREADS = 2


class AsyncEngine:
    """A running engine. Use it from one event loop at a time; a new loop may take over where an old one ended.

    info: what the ready engine says of itself; tokenizer: the model's;
    default_sampling: SamplingParams fields that the checkpoint's generation_config.json sets.
    Raises ConfigError, CheckpointError or EngineDead where the engine cannot start.
    """

    def __init__(self, args: EngineArgs, client: AttachableClient, progress: Progress = logger.info) -> None:
        self.args = args
        _log_accepted(args)
        self._client = client
        self.info: EngineInfo = client.start(progress)
        self._finalizer = weakref.finalize(self, client.close)
        try:
            self.tokenizer = Tokenizer.load(args.tokenizer or self.info.model_path, args.revision)
            self.default_sampling = default_sampling(self.info.model_path, args.generation_config)
        except BaseException:
            self._finalizer()
            raise
        if self.default_sampling:
            logger.info("sampling defaults from generation_config.json: %s", self.default_sampling)
        self.inputs = InputProcessor(self.tokenizer, self.info)
        self._outputs = OutputProcessor(self.tokenizer)
        self._pending: dict[str, PendingOutput] = {}
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._call_ids = itertools.count()
        self._request_ids = itertools.count()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._dead: str | None = None
        self._stats = SchedulerStats()
        self._stats_log = StatsLog()
        self._threads: ThreadPoolExecutor | None = None

    @classmethod
    def from_engine_args(cls, args: EngineArgs, progress: Progress = logger.info) -> Self:
        """Start an engine in a process of its own (in a thread where args.engine_process is False); returns when ready.

        With data_parallel_size above 1 these are several, always processes.
        May be called with or without a running event loop. progress: gets a line for each thing the start does.
        """
        in_process = args.engine_process or args.data_parallel_size != 1
        client = process_client(args) if in_process else ThreadClient(args)
        return cls(args, client, progress)

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        add_special_tokens: bool = True,
    ) -> AsyncIterator[RequestOutput]:
        """Run one request; leaving the iterator early (break, aclose, cancellation) aborts it.

        prompt: text, token ids, {"prompt": text} or {"prompt_token_ids": ids}. priority: lower runs first.
        cache_salt: requests share prompt pages only with those of the same salt.
        add_special_tokens: False for text that holds them already (a rendered chat template).

        Raises:
            RequestError: the request is not valid. QueueFull: too many wait already.
            EngineError: this request failed. EngineDead: the engine ended, for this and every request.
        """
        self._attach()
        params = sampling_params if sampling_params is not None else self.get_default_sampling_params()
        request_id = request_id if request_id is not None else f"request-{next(self._request_ids)}"
        arrival_time_s = time.monotonic()
        text, ids, params = await self._process(prompt, params, add_special_tokens)
        self._log_request(request_id, text, ids, params)
        pending = self._add(request_id, text, ids, params, arrival_time_s, priority, cache_salt)
        try:
            while not pending.is_finished or pending.waits:
                output = await pending.get()
                error = error_of(output)
                if error is not None:
                    raise error
                yield output
        finally:
            if self._pending.get(request_id) is pending:
                del self._pending[request_id]
            if not pending.is_finished:
                self._abort_now([request_id])

    async def abort(self, request_id: str | Iterable[str]) -> None:
        """End one request or several; their iterators give a last output with finish_reason "abort"."""
        self._attach()
        self._abort_now([request_id] if isinstance(request_id, str) else list(request_id))

    async def stats(self) -> SchedulerStats:
        """Gauges of now; the last known ones where the engine is busy for longer than STATS_TIMEOUT_S."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STATS_TIMEOUT_S):
                self._stats = msgspec.convert(await self._call("stats"), SchedulerStats)
        return self._stats

    async def get_model_config(self) -> SchedulerStats:
        """`stats`, under the name that published monitoring loops call."""
        return await self.stats()

    @property
    def latest_stats(self) -> SchedulerStats:
        """The last snapshot that the engine sent, at most a few steps old; asks nobody."""
        return self._stats

    @property
    def is_running(self) -> bool:
        """False once the engine has ended."""
        return self._dead is None

    @property
    def num_live_requests(self) -> int:
        """Requests that have not had their last output."""
        return self._outputs.num_live

    async def check_health(self) -> None:
        """Raises EngineDead once the engine has ended (it is noticed within a second), ReplicaLost while none of
        several is up."""
        self._attach()
        replicas = self._stats.replicas
        if replicas and not any(replica.is_up for replica in replicas):
            raise ReplicaLost("no replica is up; they are being started again")

    async def do_log_stats(self) -> None:
        """Log the line of throughput and queue lengths now."""
        logger.info("%s", self._stats_log.line(await self.stats(), always=True))

    async def reset_prefix_cache(self) -> bool:
        """Forget all cached prompt pages; False where running requests still use some."""
        return bool(await self._call("reset_prefix_cache"))

    async def wait_for_requests_to_drain(self, timeout_s: float = 300.0) -> None:
        """Return when no request runs or waits. Raises TimeoutError after timeout_s, EngineDead with the engine."""
        async with asyncio.timeout(timeout_s):
            while self._outputs.num_live:
                self._attach()
                await asyncio.sleep(DRAIN_CHECK_S)

    def get_tokenizer(self) -> Tokenizer:
        return self.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What a request without parameters runs with: vLLM's defaults, overlaid with default_sampling."""
        return SamplingParams(**self.default_sampling)

    def shutdown(self) -> None:
        """End the engine; running requests get EngineDead. Twice does nothing."""
        self._finalizer()
        self._die("the engine is shut down")
        if self._threads is not None:
            self._threads.shutdown(wait=False)

    def _attach(self) -> None:
        """Be heard by the running event loop. Raises EngineDead once the engine has ended."""
        if self._dead is not None:
            raise EngineDead(self._dead)
        loop = asyncio.get_running_loop()
        if loop is self._loop:
            return
        self._loop = loop
        for future in self._calls.values():  # the loop that waited for them is gone
            future.cancel()
        self._calls.clear()
        # Weakly: an engine that its user let go of must not live on in the loop's callbacks.
        self._client.attach(loop, _weakly(self._on_message))
        if not self.args.disable_log_stats:
            loop.call_later(LOG_INTERVAL_S, _weakly(self._log_tick), loop)

    async def _process(
        self, prompt: Prompt, params: SamplingParams, add_special_tokens: bool
    ) -> tuple[str | None, list[int], SamplingParams]:
        def process() -> tuple[str | None, list[int], SamplingParams]:
            return self.inputs.process(prompt, params, add_special_tokens=add_special_tokens)

        if _num_chars(prompt) <= LONG_PROMPT_CHARS:
            return process()
        if self._threads is None:
            self._threads = ThreadPoolExecutor(NUM_TOKENIZER_THREADS, "jaxserve-tokenizer")
        return await asyncio.get_running_loop().run_in_executor(self._threads, process)

    def _add(
        self,
        request_id: str,
        text: str | None,
        ids: list[int],
        params: SamplingParams,
        arrival_time_s: float,
        priority: int,
        cache_salt: str | None,
    ) -> PendingOutput:
        messages = self._outputs.add(request_id, text, ids, params, arrival_time_s, priority, cache_salt)
        try:
            for message in messages:
                self._client.send(message)
        except BaseException:
            self._outputs.forget(request_id)
            raise
        self._stats_log.count_prompt(len(ids))
        pending = PendingOutput(params.output_kind)
        self._pending[request_id] = pending
        return pending

    def _abort_now(self, request_ids: Sequence[str]) -> None:
        engine_ids, outputs = self._outputs.abort(request_ids)
        self._deliver(outputs)
        if engine_ids and self._dead is None:
            with contextlib.suppress(EngineDead):  # then nothing runs any more
                self._client.send(AbortRequests(engine_ids))

    def _on_message(self, message: FromEngine) -> None:
        match message:
            case Outputs(outputs=outputs, stats=stats):
                if stats is not None:
                    self._stats = stats
                self._stats_log.count_outputs(outputs)
                processed = self._outputs.process(outputs)
                self._deliver(processed.request_outputs)
                if processed.aborts:
                    with contextlib.suppress(EngineDead):
                        self._client.send(AbortRequests(processed.aborts))
            case CallResult(call_id=call_id, value=value, error=error):
                future = self._calls.pop(call_id, None)
                if future is not None and not future.done():
                    if error is None:
                        future.set_result(value)
                    else:
                        future.set_exception(EngineError(error))
            case EngineFailed(message=text):
                logger.error("the engine ended: %s", text)
                self._die(text)
            case _:
                pass

    def _deliver(self, outputs: list[RequestOutput]) -> None:
        for output in outputs:
            pending = self._pending.get(output.request_id)
            if pending is not None:
                pending.put(output)

    def _die(self, reason: str) -> None:
        """Nothing will be answered any more: say so to everybody who waits."""
        if self._dead is not None:
            return
        self._dead = reason
        self._deliver(self._outputs.fail_all(reason, "EngineDead"))
        for future in self._calls.values():
            if not future.done() and not future.get_loop().is_closed():
                future.set_exception(EngineDead(reason))
        self._calls.clear()

    async def _call(self, method: str, *args: Any) -> Any:
        self._attach()
        call_id = next(self._call_ids)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._calls[call_id] = future
        try:
            self._client.send(Call(call_id, method, list(args)))
            return await future
        finally:
            self._calls.pop(call_id, None)

    def _log_tick(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._dead is not None or loop is not self._loop:
            return
        line = self._stats_log.line(self._stats)
        if line is not None:
            logger.info("%s", line)
        loop.call_later(LOG_INTERVAL_S, _weakly(self._log_tick), loop)

    def _log_request(self, request_id: str, text: str | None, ids: list[int], params: SamplingParams) -> None:
        if not self.args.enable_log_requests:
            return
        shown = "" if self.args.max_log_len is None else f" prompt {(text or str(ids))[: self.args.max_log_len]!r}"
        logger.info("request %s: %d prompt tokens,%s %s", request_id, len(ids), shown, params)


def _weakly[**P](method: Callable[P, None]) -> Callable[P, None]:
    """A callback that does nothing once the method's object is gone."""
    reference = weakref.WeakMethod(method)

    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        alive = reference()
        if alive is not None:
            alive(*args, **kwargs)

    return call


def _num_chars(prompt: Prompt) -> int:
    """Length of the prompt's text; 0 for token ids."""
    if isinstance(prompt, str):
        return len(prompt)
    text = prompt.get("prompt") if isinstance(prompt, dict) else None
    return len(text) if isinstance(text, str) else 0


def _log_accepted(args: EngineArgs) -> None:
    """Say once which arguments are taken for compatibility and change nothing."""
    if args.swap_space is not None:
        logger.warning("swap_space has no effect: preempted requests are recomputed, not swapped")
    if args.trust_remote_code:
        logger.warning("trust_remote_code has no effect: code from a checkpoint is never run")
    if args.max_log_len is not None and not args.enable_log_requests:
        logger.warning("max_log_len has no effect without enable_log_requests")


AsyncLLMEngine = AsyncEngine
