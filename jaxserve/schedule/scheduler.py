"""`Scheduler`: continuous batching. Which tokens of which requests the next step computes.

There is no prefill or decode phase: every running request has num_tokens - num_computed_tokens
tokens to compute, many for a prompt, one while it generates. A step is a budget of tokens, spent
on running requests first, in queue order, then on new ones.

A step may be scheduled while the one before is in flight: a request whose token is pending goes on with
PENDING_TOKEN. If that token turns out to have ended it, its row of the later step finds no taker. Row and
pages are free at once all the same, because the device runs steps in order.

Who owns a request: `queue` while it waits (no row, no pages), `_running` while it runs (a row and
pages), nobody after its one terminal EngineOutput. Page ownership: see jaxserve/cache/paged_cache.py.
"""

import bisect
import heapq
import time
from collections import deque
from collections.abc import Callable, Collection

from jaxserve.cache.paged_cache import PagedCache
from jaxserve.core.config import CacheConfig, SchedulerConfig
from jaxserve.core.errors import RequestError
from jaxserve.core.outputs import EngineOutput, FinishReason
from jaxserve.core.request import Request
from jaxserve.core.step_result import RowResult
from jaxserve.schedule.admission import check_config, check_queue, check_request
from jaxserve.schedule.ahead import may_have_to_see, must_see_token, num_left_tokens
from jaxserve.schedule.chunks import chunk_len, first_chunk_len
from jaxserve.schedule.finish import NON_FINITE, finish_of
from jaxserve.schedule.integrity import Flight, check_flights, check_requests, check_rows, check_tables
from jaxserve.schedule.output import RowStart, ScheduledRow, SchedulerOutput
from jaxserve.schedule.queue import WaitingQueue
from jaxserve.schedule.rows import row_start, scheduled_row


class Scheduler:
    """Owns every Request between `add` and its terminal output, and every page.

    Call `schedule`, run the step, call `update` (or `fail_step`), and again; where `may_run_ahead`, call
    `schedule` once more before `update`. Steps are updated in order; `add` and `abort` may come at any moment.
    Not thread-safe.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        cache: CacheConfig,
        eos_token_ids: Collection[int],
        rope_sensitive_len: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        model: str = "",
    ) -> None:
        """model: named in the prefix cache's hashes. Raises ConfigError if the limits cannot work together."""
        check_config(config, cache)
        self.config = config
        self.cache = PagedCache(cache, model=model, rope_sensitive_len=rope_sensitive_len)
        self.queue = WaitingQueue(config.policy)
        self._eos_token_ids = frozenset(eos_token_ids)
        self._clock = clock
        self._requests: dict[str, Request] = {}
        self._running: list[Request] = []  # in queue order: the last is the first to lose its pages
        self._watched: list[Request] = []  # those running of which `must_see_token` can be true; mostly none
        self._free_rows = list(range(config.max_num_seqs))  # a heap
        self._in_flight: deque[Flight] = deque()  # scheduled, not updated: at most two, none without a taker
        self._step_id = 0
        self._num_added = 0
        self._num_preemptions = 0

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    @property
    def may_run_ahead(self) -> bool:
        """Whether `schedule` may be called now: at most one step is in flight and the next needs none of its tokens."""
        if not self._in_flight:
            return True
        return len(self._in_flight) == 1 and not any(map(must_see_token, self._watched))

    def awaits(self, step_id: int) -> bool:
        """Whether any request still waits for this step's results; if not, they need not be read."""
        return any(flight.step_id == step_id for flight in self._in_flight)

    def add(self, request: Request) -> None:
        """Queues a request. Raises RequestError if it can never run, QueueFull at a queue limit."""
        if request.request_id in self._requests:
            raise RequestError(f"request_id {request.request_id!r} is in use", param="request_id")
        check_request(request, self.config)
        check_queue(request, self.queue, len(self._free_rows), self.config, self._clock())
        self._num_added += 1
        request.arrival_order = self._num_added
        self._requests[request.request_id] = request
        self.queue.push(request)

    def abort(self, request_ids: Collection[str]) -> list[EngineOutput]:
        """Ends requests now, even while a step computes them. Unknown and finished ids are ignored."""
        live = [self._requests[request_id] for request_id in dict.fromkeys(request_ids) if request_id in self._requests]
        return [self._finish(request, EngineOutput(request.request_id), FinishReason.ABORT) for request in live]

    def fail_request(self, request_id: str, message: str) -> EngineOutput | None:
        """Ends one request with an error; None if it has ended already."""
        request = self._requests.get(request_id)
        if request is None:
            return None
        return self._finish(request, EngineOutput(request_id, error=message), FinishReason.ERROR)

    def schedule(self) -> SchedulerOutput | None:
        """Decides the next step; None if there is nothing to compute, or not before the step in flight is booked."""
        assert self.may_run_ahead, "schedule() needs the tokens of the last step: update() or fail_step() first"
        budget, rows, preempted = self.config.max_num_batched_tokens, list[ScheduledRow](), list[str]()
        index = 0
        while index < len(self._running):
            request = self._running[index]
            index += 1
            num_left = num_left_tokens(request, self.config.max_model_len)
            if num_left == 0:
                continue
            num_later = len(self._running) - index  # each of them is promised one token
            num_new = 1 if num_left == 1 else chunk_len(self.config, num_left, budget - num_later)
            if not self._make_room(request, request.num_reached_tokens + num_new, preempted):
                break  # it was the last and gave its own pages up
            rows.append(self._scheduled(request, num_new))
            budget -= num_new
        starts = self._admit(budget, rows) if not preempted else []  # or a victim might be back in the same step
        if not rows:
            return None
        num_tokens = sum([len(row.token_ids) for row in rows])
        if num_tokens > len(rows):
            rows.sort(key=lambda row: len(row.token_ids) > 1)
        self._step_id += 1
        self._in_flight.append(Flight(self._step_id, {row.request_id: row for row in rows}))
        return SchedulerOutput(self._step_id, rows, starts, num_tokens, preempted)

    def update(self, output: SchedulerOutput, results: list[RowResult]) -> list[EngineOutput]:
        """Books a step's results: new tokens, and which requests they end.

        Results of requests that ended or were preempted after `schedule`, and of a step that
        `fail_step` gave up, are dropped.
        """
        if not self.awaits(output.step_id):
            return []
        flight = self._in_flight.popleft()
        assert flight.step_id == output.step_id, f"step {flight.step_id} comes before step {output.step_id}"
        news: list[EngineOutput] = []
        for result in results:
            row = flight.rows.pop(result.request_id, None)
            if row is not None:
                news.append(self._book(self._requests[row.request_id], row, result))
        assert not flight.rows, f"no results for {list(flight.rows)}"
        return [one for one in news if one.new_token_ids or one.finish_reason or one.prompt_logprobs is not None]

    def fail_step(self) -> None:
        """A step failed and took the pool along: all in flight are given up, all that runs will be recomputed."""
        while self._running:
            self._preempt(self._running.pop())
        self.cache.reset()

    def reset_prefix_cache(self) -> bool:
        """Forgets every cached prefix; False (and nothing changed) while requests run."""
        return self.cache.reset()

    def stats(self) -> dict[str, int]:
        """Gauges of now and counters since the start; the names are those of SchedulerStats.

        num_used_pages are held by requests; num_cached_pages are held by none and kept for a later hit.
        """
        return {
            "num_running": len(self._running),
            "num_waiting": len(self.queue),
            "num_waiting_tokens": self.queue.num_tokens,
            "num_pages": self.cache.pages.num_pages,
            "num_used_pages": self.cache.pages.num_used,
            "num_cached_pages": self.cache.pages.num_kept,
            "num_preemptions": self._num_preemptions,
            "prefix_cache_queries": self.cache.prefix.num_queries,
            "prefix_cache_hits": self.cache.prefix.num_hits,
        }

    def check(self) -> None:
        """Asserts that every ledger agrees with every other."""
        check_requests(self._requests, self._running, self.queue)
        check_flights(self._in_flight, self._running)
        assert {id(request) for request in self._watched} == {id(r) for r in self._running if may_have_to_see(r)}
        check_rows(self._running, self._free_rows, self.config.max_num_seqs)
        check_tables(self._running, self.cache)

    def _make_room(self, request: Request, num_tokens: int, preempted: list[str]) -> bool:
        """Lengthens a running request's table, at the cost of the last running ones; False if it was the last itself.

        Those scheduled earlier in this step stand before it and are never touched. The first always
        succeeds: the pool holds one request of max_model_len.
        """
        while not self.cache.grow(request, num_tokens):
            victim = self._running.pop()
            preempted.append(victim.request_id)
            self._preempt(victim)
            if victim is request:
                return False
        return True

    def _admit(self, budget: int, rows: list[ScheduledRow]) -> list[RowStart]:
        """Starts waiting requests, in order, while rows, budget and pages last; appends their rows.

        The pages that running prompts still need are spoken for, so that no prompt evicts another.
        """
        starts: list[RowStart] = []
        if not self.queue or not self._free_rows:
            return starts
        num_reserved = sum(self._num_missing_pages(request) for request in self._running)
        while self.queue and self._free_rows and budget > 0:
            request = self.queue.peek()
            hits = self.cache.prefix.lookup(request)
            num_cached = len(hits) * self.cache.page_size
            num_new = first_chunk_len(self.config, request.num_tokens - num_cached, budget)
            if num_new == 0 or not self.cache.fits(request, hits, num_reserved):
                break
            starts.append(self._start(self.queue.pop(), hits))
            self.cache.grow(request, request.num_reached_tokens + num_new)
            rows.append(self._scheduled(request, num_new))
            num_reserved += self._num_missing_pages(request)
            budget -= num_new
        return starts

    def _num_missing_pages(self, request: Request) -> int:
        return max(0, self.cache.num_pages_of(request.num_tokens) - len(request.page_ids))

    def _start(self, request: Request, hits: list[int]) -> RowStart:
        """Gives a request a row and the pages found in the prefix cache."""
        self.cache.open(request, hits)
        request.row = heapq.heappop(self._free_rows)
        bisect.insort(self._running, request, key=self.queue.key)
        if may_have_to_see(request):
            self._watched.append(request)
        if request.admitted_time_s is None:  # what a preempted request finds is its own: no merit of the cache
            request.admitted_time_s = self._clock()
            request.num_cached_tokens = request.num_computed_tokens
            self.cache.prefix.count(request, request.num_cached_tokens)
        return row_start(request)

    def _scheduled(self, request: Request, num_new: int) -> ScheduledRow:
        """The row that computes the request's next num_new tokens; its table is long enough already.

        A page that a pending token fills has no name before the token is known.
        """
        stop = request.num_reached_tokens + num_new
        self.cache.publish(request, min(stop, request.num_tokens))
        row = scheduled_row(request, stop)
        request.num_scheduled_tokens += num_new
        request.num_pending_tokens += row.samples
        return row

    def _book(self, request: Request, row: ScheduledRow, result: RowResult) -> EngineOutput:
        """One row's result: what it computed, what it sampled, whether that ends the request."""
        request.num_computed_tokens += len(row.token_ids)
        request.num_scheduled_tokens -= len(row.token_ids)
        request.num_pending_tokens -= row.samples
        news = EngineOutput(request.request_id)
        if not result.is_finite:
            news.error = NON_FINITE
            return self._finish(request, news, FinishReason.ERROR)
        if row.num_prompt_logprobs is not None and result.prompt_logprobs is not None:
            news.prompt_logprobs = result.prompt_logprobs[request.num_prompt_logprobs_sent - row.start :]
            request.num_prompt_logprobs_sent += len(news.prompt_logprobs)
        if not row.samples:
            return self._signed(request, news)
        assert result.token_id is not None, f"row {row.row} sampled no token"
        request.output_token_ids.append(result.token_id)
        news.new_token_ids = [result.token_id]
        news.logprobs = None if result.logprobs is None else [result.logprobs]
        if request.first_token_time_s is None and request.admitted_time_s is not None:
            request.first_token_time_s = self._clock()
            news.queue_time_s = request.admitted_time_s - request.arrival_time_s
            news.prefill_time_s = request.first_token_time_s - request.admitted_time_s
        reason, news.stop_reason = finish_of(request, self._eos_token_ids, self.config.max_model_len)
        return self._signed(request, news) if reason is None else self._finish(request, news, reason)

    def _finish(self, request: Request, news: EngineOutput, reason: FinishReason) -> EngineOutput:
        """The one terminal output; the request leaves every ledger. An erring one leaves nothing in the cache."""
        del self._requests[request.request_id]
        if self.queue.remove(request.request_id) is None:
            self._running.remove(request)
            self._stop(request, trusted=reason is not FinishReason.ERROR)
        news.finish_reason = reason
        return self._signed(request, news)

    def _signed(self, request: Request, news: EngineOutput) -> EngineOutput:
        news.num_cached_tokens, news.num_preemptions = request.num_cached_tokens, request.num_preemptions
        return news

    def _preempt(self, request: Request) -> None:
        """A request that has just left `_running` gives its row and pages up and waits to be recomputed."""
        self._stop(request)
        request.num_preemptions += 1
        self._num_preemptions += 1
        self.queue.push(request)

    def _stop(self, request: Request, *, trusted: bool = True) -> None:
        """Takes row and pages back. Results that are still to come find no taker."""
        assert request.row is not None
        self.cache.close(request, trusted=trusted)
        heapq.heappush(self._free_rows, request.row)
        request.row = None
        request.num_scheduled_tokens = request.num_pending_tokens = 0
        if request in self._watched:
            self._watched.remove(request)
        for flight in self._in_flight:
            flight.rows.pop(request.request_id, None)
        self._in_flight = deque(flight for flight in self._in_flight if flight.rows)
