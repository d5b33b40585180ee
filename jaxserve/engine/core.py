"""`EngineCore`: scheduler plus model runner, one step ahead of the tokens. The only engine part that needs jax."""

import random
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from jaxserve.core.config import EngineArgs, EngineConfig
from jaxserve.core.errors import EngineDead, JaxserveError, QueueFull
from jaxserve.core.outputs import EngineOutput, FinishReason
from jaxserve.core.request import Request
from jaxserve.engine.leader import Leader
from jaxserve.engine.messages import AddRequest, EngineInfo, SchedulerStats
from jaxserve.engine.parts import keep, make_parts
from jaxserve.engine.ranks import Ranks
from jaxserve.runner.heap import release_heap, settle_heap
from jaxserve.runner.memory import memory_in_use
from jaxserve.runner.meter import StepMeter
from jaxserve.runner.model_runner import InFlight, StepFailedError
from jaxserve.runner.roofline import Rates
from jaxserve.schedule.scheduler import Scheduler

_MAX_FAILED_STEPS = 3  # in a row, before the engine gives up


class EngineCore:
    """Serves token ids. Not thread-safe: one loop owns it.

    Construction loads the weights and compiles everything, or what it needs to begin.
    Raises ConfigError or CheckpointError.
    progress: called with a line for a person, now and then. ranks: the group that this engine leads, if any.
    """

    def __init__(self, args: EngineArgs, progress: Callable[[str], None], ranks: Ranks | None = None) -> None:
        self._leader = None if ranks is None else Leader(ranks, progress)
        try:
            parts = make_parts(args, progress, keep if self._leader is None else self._leader.agree)
        except BaseException as error:
            if self._leader is not None:
                self._leader.close(f"rank 0 cannot start: {error}")
            raise
        self.config, self._maker, self._compiles = parts.config, parts.maker, parts.compiles
        self.runner = parts.runner
        self._steps = parts.runner if self._leader is None else self._leader.leading(parts.runner)
        self._meter = StepMeter(parts.costs)
        self.scheduler = Scheduler(
            self.config.scheduler,
            self.config.cache,
            self.config.model.eos_token_ids,
            rope_sensitive_len(self.config),
            model=self.config.model_path,
        )
        self.info = engine_info(self.config, parts.devices, parts.times, parts.costs.rates)
        self._compiles_at_start = self._compiles.count
        self.info.num_compilations = self._compiles.count + self._compiles.in_threads
        self.info.num_pending_programs = self._maker.num_pending
        phases = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in parts.times.items())
        pending = f"; {self._maker.num_pending} follow in the background" if self._maker.num_pending else ""
        progress(f"started: {phases}; {self.info.num_compilations} programs compiled{pending}")
        self._seeds = random.Random(args.seed)
        self._is_async = args.async_scheduling
        self._flights: deque[InFlight] = deque()  # dispatched, not collected; of two the second is one step ahead
        self._num_failed_steps = 0
        self._num_steps = self._num_step_tokens = self._num_corrupted = 0
        settle_heap()

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    def add(self, msg: AddRequest) -> EngineOutput | None:
        """Queue a request; an immediate terminal output if it is refused."""
        if not self.has_work:
            self._meter.restart(time.monotonic())
        seed = msg.params.seed
        request = Request(
            request_id=msg.request_id,
            prompt_token_ids=msg.prompt_token_ids,
            params=msg.params,
            seed=(self._seeds.getrandbits(64) if seed is None else seed) & 0xFFFF_FFFF_FFFF_FFFF,
            arrival_time_s=msg.arrival_time_s,
            priority=msg.priority,
            cache_salt=msg.cache_salt,
        )
        try:
            self.scheduler.add(request)
        except JaxserveError as error:
            kind = "QueueFull" if isinstance(error, QueueFull) else type(error).__name__
            return EngineOutput(msg.request_id, finish_reason=FinishReason.ERROR, error=str(error), error_kind=kind)
        return None

    def abort(self, ids: list[str]) -> list[EngineOutput]:
        """End these requests now; unknown ids are ignored."""
        news = self.scheduler.abort(ids)
        self._drop_unawaited()
        return news

    def step(self) -> list[EngineOutput]:
        """Dispatch the next step, then wait for the one before and book it; the news of its requests.

        Nothing waits for the step just dispatched unless the one after depends on its tokens, so the device has
        work while the host books. A step that the device refuses costs no request anything but time: the pool is
        rebuilt and everything that ran is recomputed. Raises EngineDead if that happens again and again.
        """
        news: list[EngineOutput] = []
        self._drop_unawaited()
        try:
            self._advance(news)
        except StepFailedError as error:
            self._num_failed_steps += 1
            if self._num_failed_steps >= _MAX_FAILED_STEPS:
                raise EngineDead(f"{_MAX_FAILED_STEPS} steps in a row failed; the last with: {error}") from error
            self._flights.clear()
            self.scheduler.fail_step()
            self._steps.rebuild()
            self._meter.failed(time.monotonic())
        self._drop_unawaited()
        return news

    def _advance(self, news: list[EngineOutput]) -> None:
        """One step more in flight, then all out of flight that need not be; their news are appended."""
        scheduled = self.scheduler.schedule()
        if scheduled is not None:
            try:
                self._flights.append(self._steps.dispatch(scheduled))
                self._meter.dispatched(scheduled, time.monotonic())
            except StepFailedError:
                while self._flights:  # they were dispatched before it: their tokens are good
                    news += self._land()
                raise
        while len(self._flights) > (1 if scheduled is not None and self._is_async else 0):
            news += self._land()
        if self._flights and not self.scheduler.may_run_ahead:
            news += self._land()

    def _land(self) -> list[EngineOutput]:
        """Wait for the oldest step in flight and book it."""
        flight = self._flights.popleft()
        results = self._steps.collect(flight)
        self._meter.collected(time.monotonic())
        self._num_failed_steps = 0
        self._num_steps += 1
        self._num_step_tokens += flight.scheduled.num_tokens
        self._num_corrupted += sum(not result.is_finite for result in results)
        return self.scheduler.update(flight.scheduled, results)

    def _drop_unawaited(self) -> None:
        """Steps whose requests have all ended (or run again from the start) are not waited for."""
        for place in reversed(range(len(self._flights))):
            if not self.scheduler.awaits(self._flights[place].scheduled.step_id):
                del self._flights[place]
                self._meter.dropped(place)

    def stats(self) -> SchedulerStats:
        """Gauges of now and counters since the start."""
        used_bytes, total_bytes = memory_in_use()
        return SchedulerStats(
            **self.scheduler.stats(),
            num_steps=self._num_steps,
            num_step_tokens=self._num_step_tokens,
            num_compilations_after_warmup=self._compiles.count - self._compiles_at_start,
            num_pending_programs=self._maker.num_pending,
            num_corrupted_requests=self._num_corrupted,
            device_memory_used_bytes=used_bytes,
            device_memory_total_bytes=total_bytes,
            **self._meter.totals(),
        )

    def call(self, method: str, args: list[Any]) -> Any:
        """What a front end may ask between two steps."""
        if method == "stats":
            return self.stats()
        if method == "reset_prefix_cache":
            return self.scheduler.reset_prefix_cache()
        raise ValueError(f"the engine has no method {method!r}")

    def close(self, reason: str | None = None) -> None:
        """Give the device's memory back. A program that is being compiled is finished, none is begun.

        reason: why it could not go on, for those who follow.
        """
        self._maker.stop()
        self._flights.clear()
        del self.runner, self._steps
        if self._leader is not None:
            self._leader.close(reason)
        release_heap()


def rope_sensitive_len(config: EngineConfig) -> int | None:
    """Prompts longer than this have keys that depend on the prompt's length; None where none have."""
    rope = config.model.rope
    if rope.rope_type == "dynamic":
        return rope.original_max_position_embeddings or config.model.max_position_embeddings
    if rope.rope_type == "longrope":
        return rope.original_max_position_embeddings
    return None


def engine_info(config: EngineConfig, device: str, startup_s: dict[str, float], rates: Rates | None) -> EngineInfo:
    """What a front end must know of a ready engine. rates: the device's peaks where they are known."""
    return EngineInfo(
        model_path=config.model_path,
        architecture=config.model.architecture,
        dtype=config.model.dtype,
        kv_cache_dtype=config.pool.dtype,
        vocab_size=config.model.vocab_size,
        max_model_len=config.scheduler.max_model_len,
        max_num_seqs=config.scheduler.max_num_seqs,
        max_num_batched_tokens=config.scheduler.max_num_batched_tokens,
        max_logprobs=config.max_logprobs,
        page_size=config.cache.page_size,
        num_pages=config.cache.num_pages,
        eos_token_ids=list(config.model.eos_token_ids),
        device=device,
        startup_s={name: round(seconds, 3) for name, seconds in startup_s.items()},
        peak_bandwidth=None if rates is None else rates.bandwidth,
        peak_flops=None if rates is None else rates.flops,
    )
