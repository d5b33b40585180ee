"""The scheduler against a brute-force model: whatever happens, every request gets the tokens it gets alone.

The device is played by a pool of (page, offset) -> what was written there. The fake model's next
token is a hash of the context *as read through the page table*, so a page shared, reused or
recomputed wrongly shows up as a wrong token. With a lag of 1 a step is scheduled before the host has read
the tokens of the one before.
"""

import random
from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from jaxserve.core.config import CacheConfig, SchedulerConfig
from jaxserve.core.outputs import EngineOutput, FinishReason, TokenLogprobs
from jaxserve.core.params import SamplingParams
from jaxserve.core.request import Request
from jaxserve.core.step_result import RowResult
from jaxserve.schedule.output import PENDING_TOKEN, RowStart, ScheduledRow, SchedulerOutput
from jaxserve.schedule.scheduler import Scheduler

VOCAB, EOS = 11, 7
ROPE_SENSITIVE_LEN = 20
SALTS = (None, "a", "b")
DOCUMENTS = [[random.Random(seed).randrange(VOCAB) for _ in range(64)] for seed in range(3)]
TIGHT = SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=12, max_model_len=40)


def written(request: Request, position: int, token_id: int) -> tuple[int, str | None, int]:
    """What a token leaves in the pool: itself, its salt, and its rotary length where angles depend on it."""
    rope_len = max(request.num_prompt_tokens, position + 1)
    return token_id, request.cache_salt, rope_len if rope_len > ROPE_SENSITIVE_LEN else 0


def sampled(context: list[tuple[int, str | None, int]], seed: int) -> int:
    return hash((seed, *((token, SALTS.index(salt), rope) for token, salt, rope in context))) % VOCAB


def alone(request: Request, max_model_len: int) -> tuple[list[int], FinishReason, int | None]:
    """Tokens and end of a request, computed without any scheduler."""
    copy = Request(request.request_id, request.prompt_token_ids, request.params, cache_salt=request.cache_salt)
    params, tokens = copy.params, copy.output_token_ids
    while True:
        known = enumerate(copy.tokens(0, copy.num_tokens))
        tokens.append(sampled([written(copy, position, token_id) for position, token_id in known], request.seed))
        if len(tokens) >= params.min_tokens:
            if tokens[-1] == EOS and not params.ignore_eos:
                return tokens, FinishReason.STOP, None
            if tokens[-1] in (params.stop_token_ids or ()):
                return tokens, FinishReason.STOP, tokens[-1]
        if len(tokens) == params.max_tokens or copy.num_tokens == max_model_len:
            return tokens, FinishReason.LENGTH, None


@dataclass
class Life:
    """What the world has heard of one request."""

    request: Request
    tokens: list[int] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    end: EngineOutput | None = None
    allowed_ends: set[FinishReason] = field(default_factory=lambda: {FinishReason.STOP, FinishReason.LENGTH})


class World:
    """A scheduler, the fake device it drives, and everything that was promised to anybody.

    lag: steps that may be in flight when the next is scheduled, 0 or 1. flights: results the device has and
    the host has not read.
    """

    def __init__(
        self, config: SchedulerConfig, num_pages: int, page_size: int = 4, *, prefix: bool = True, lag: int = 0
    ) -> None:
        self.config, self.page_size, self.lag = config, page_size, lag
        self.flights: list[tuple[SchedulerOutput, list[RowResult]]] = []
        self.last_tokens = [0] * config.max_num_seqs
        self.num_pending_rows = self.num_unawaited = 0
        cache = CacheConfig(page_size, num_pages, enable_prefix_caching=prefix)
        self.scheduler = Scheduler(config, cache, [EOS], ROPE_SENSITIVE_LEN, clock=lambda: 0.0)
        self.pool: list[list[tuple[int, str | None, int] | None]] = [[None] * page_size for _ in range(num_pages)]
        self.row_starts: dict[int, RowStart] = {}
        self.lives: dict[str, Life] = {}
        self.parents: dict[bytes, bytes] = {}
        self.trace: list[SchedulerOutput] = []
        self.num_steps = 0
        self.last_started = 0

    @property
    def live(self) -> list[str]:
        return [request_id for request_id, life in self.lives.items() if life.end is None]

    def add(self, prompt: list[int], params: SamplingParams, priority: int = 0, salt: str | None = None) -> str:
        request_id = f"r{len(self.lives)}"
        request = Request(request_id, prompt, params, seed=len(prompt) % 2, priority=priority, cache_salt=salt)
        self.lives[request_id] = Life(request)
        self.scheduler.add(request)
        return request_id

    def step(self, abort: tuple[str, ...] = (), poison: str | None = None, *, fail: bool = False) -> None:
        """One step; `abort` ends requests while it runs, `poison` gets non-finite logits, fail loses the pool."""
        output = self.scheduler.schedule()
        self.scheduler.check()
        if output is None and not self.flights:
            assert not self.live
            return
        if output is not None:
            self.num_steps += 1
            self.trace.append(output)
            self.check_output(output)
            self.flights.append((output, self.run(output)))
        self.abort(abort)
        if fail:
            self.pool = [[None] * self.page_size for _ in self.pool]
            self.scheduler.fail_step()
            for flight in self.flights:
                assert self.scheduler.update(*flight) == [], "results of a failed step were believed"
            self.flights.clear()
        while len(self.flights) > (0 if output is None else self.lag):
            self.land(poison)
        if not self.scheduler.may_run_ahead:
            self.land(poison)
        if not self.live:
            assert not any(self.scheduler.awaits(output.step_id) for output, _ in self.flights)
            self.flights.clear()
        self.scheduler.check()

    def land(self, poison: str | None = None) -> None:
        """The host reads the oldest step in flight."""
        output, results = self.flights.pop(0)
        if not self.scheduler.awaits(output.step_id):
            self.num_unawaited += 1
            assert self.scheduler.update(output, results) == []
            return
        for result in results:
            if result.request_id == poison and result.request_id in self.live:
                result.is_finite = False
                self.lives[result.request_id].allowed_ends.add(FinishReason.ERROR)
        self.hear(self.scheduler.update(output, results))
        self.scheduler.check()

    def abort(self, request_ids: tuple[str, ...]) -> None:
        live = set(self.live) & set(request_ids)
        for request_id in live:
            self.lives[request_id].allowed_ends = {FinishReason.ABORT}
        outputs = self.scheduler.abort(request_ids)
        assert {output.request_id for output in outputs} == live
        self.hear(outputs)

    def drain(self) -> None:
        """With no new arrivals everything ends in bounded steps, and nothing is left behind."""
        max_steps = (1 + self.lag) * sum(
            life.request.num_prompt_tokens + self.config.max_model_len for life in self.lives.values()
        )
        for _ in range(max_steps + 1):
            if not self.scheduler.has_work:
                break
            self.step()
        assert not self.scheduler.has_work, "requests never end"
        assert not self.live, "requests vanished without a terminal output"
        stats = self.scheduler.stats()
        assert (stats["num_running"], stats["num_waiting"], stats["num_waiting_tokens"]) == (0, 0, 0)
        assert stats["num_used_pages"] == 0
        assert stats["num_cached_pages"] == len(self.scheduler.cache.prefix)

    def hear(self, outputs: list[EngineOutput]) -> None:
        for output in outputs:
            life = self.lives[output.request_id]
            assert life.end is None, f"{output.request_id} speaks after its end"
            life.tokens += output.new_token_ids
            life.prompt_logprobs += output.prompt_logprobs or []
            if output.finish_reason is not None:
                life.end = output
                self.check_life(life, output)

    def check_life(self, life: Life, end: EngineOutput) -> None:
        tokens, reason, stop_reason = alone(life.request, self.config.max_model_len)
        assert end.finish_reason in life.allowed_ends
        assert life.tokens == tokens[: len(life.tokens)], f"{end.request_id}: wrong tokens"
        if end.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
            assert (life.tokens, end.finish_reason, end.stop_reason) == (tokens, reason, stop_reason)
        assert (end.error is not None) == (end.finish_reason is FinishReason.ERROR)
        prompt = life.request.prompt_token_ids
        heard = [entry.token_id for entry in life.prompt_logprobs]
        if life.request.params.prompt_logprobs is None:
            assert not heard
        else:
            assert heard == prompt[1 : 1 + len(heard)], "prompt log probabilities repeated or lost"
            assert len(heard) == len(prompt) - 1 or not life.tokens
        assert end.num_cached_tokens <= max(len(prompt) - 1, 0)

    def check_output(self, output: SchedulerOutput) -> None:
        sizes = [len(row.token_ids) for row in output.rows]
        assert output.num_tokens == sum(sizes) <= self.config.max_num_batched_tokens
        assert len(output.rows) <= self.config.max_num_seqs
        assert min(sizes) >= 1
        assert sorted(sizes, key=lambda size: size > 1) == sizes, "rows of one token come first"
        assert len({row.row for row in output.rows}) == len(output.rows)
        assert not {start.request_id for start in output.starts} & set(output.preempted)
        for start in output.starts:
            request = self.lives[start.request_id].request
            assert (start.prompt_token_ids, start.output_token_ids) == (
                request.prompt_token_ids,
                request.output_token_ids,
            )
            self.row_starts[start.row] = start
            if self.config.policy == "fcfs" and request.num_preemptions == 0:
                assert request.arrival_order > self.last_started, "overtaken among equals"
                self.last_started = request.arrival_order
        if self.config.policy == "priority" and output.starts:
            worst = max(self.lives[start.request_id].request.priority for start in output.starts)
            waiting = [self.lives[request_id].request for request_id in self.live]
            assert all(request.row is not None or request.priority >= worst for request in waiting), "a lower one first"
        self.check_writes(output.rows)
        self.check_parents(output.rows)

    def check_writes(self, rows: list[ScheduledRow]) -> None:
        """A page has one writer a step, and who else holds it only reads below its own first token."""
        writers: Counter[int] = Counter()
        for row in rows:
            first, last = row.start // self.page_size, (row.start + len(row.token_ids) - 1) // self.page_size
            assert len(row.page_ids) == last + 1
            writers.update(row.page_ids[first:])
        assert all(count == 1 for count in writers.values()), "two rows write one page"

    def check_parents(self, rows: list[ScheduledRow]) -> None:
        """Leaves go before their parents: a named page's parent is named too."""
        prefix = self.scheduler.cache.prefix
        for row in rows:
            hashes = self.lives[row.request_id].request.page_hashes
            self.parents.update(zip(hashes[1:], hashes, strict=False))
        if not any(FinishReason.ERROR in life.allowed_ends for life in self.lives.values()):
            for page_hash, parent in self.parents.items():
                assert prefix.page_of(page_hash) is None or prefix.page_of(parent) is not None

    def run(self, output: SchedulerOutput) -> list[RowResult]:
        """The device: all rows are written, then each reads its context through its table."""
        for row in output.rows:
            request = self.lives[row.request_id].request
            assert self.row_starts[row.row].request_id == row.request_id, "no RowStart for this row"
            token_ids = row.token_ids
            if token_ids == [PENDING_TOKEN]:
                assert row.start == request.num_tokens, "only the token after the known ones can be pending"
                token_ids = [self.last_tokens[row.row]]
                self.num_pending_rows += 1
            else:
                assert token_ids == request.tokens(row.start, row.start + len(token_ids))
            for position, token_id in enumerate(token_ids, row.start):
                page_id = row.page_ids[position // self.page_size]
                self.pool[page_id][position % self.page_size] = written(request, position, token_id)
        return [self.result(row) for row in output.rows]

    def result(self, row: ScheduledRow) -> RowResult:
        stop, prompt = row.start + len(row.token_ids), self.lives[row.request_id].request.prompt_token_ids
        context = [self.pool[row.page_ids[at // self.page_size]][at % self.page_size] for at in range(stop)]
        known = [entry for entry in context if entry is not None]
        assert len(known) == stop, f"{row.request_id} reads what nobody wrote"
        result = RowResult(row.request_id, None)
        if row.samples:
            result.token_id = self.last_tokens[row.row] = sampled(known, self.row_starts[row.row].seed)
        if row.num_prompt_logprobs is not None:
            entries = range(row.start + 1, min(stop, len(prompt) - 1) + 1)
            result.prompt_logprobs = [TokenLogprobs(prompt[at], known[at - 1][0], 1) for at in entries]
        return result


def random_params(rng: random.Random) -> SamplingParams:
    max_tokens = rng.choice([1, 2, 5, 12, 30, None])
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=min(rng.choice([0, 0, 3]), max_tokens or 3),
        ignore_eos=rng.random() < 0.5,
        stop_token_ids=rng.choice([None, [3], [EOS, 2]]),
        prompt_logprobs=rng.choice([None, None, None, 0, 2]),
        skip_reading_prefix_cache=rng.choice([None, None, False, True]),
    )


def random_prompt(rng: random.Random, max_len: int) -> list[int]:
    """Mostly beginnings of the same few documents, often at page boundaries, sometimes with a tail of their own."""
    size = min(rng.choice([1, 3, 4, 8, 16, 17, rng.randrange(1, max_len + 1)]), max_len)
    num_tail = rng.choice([0, 0, 1, 5])
    prompt = rng.choice(DOCUMENTS)[:size]
    return (prompt[: max(size - num_tail, 0)] + [rng.randrange(VOCAB) for _ in range(num_tail)])[:max_len]


def drive(world: World, rng: random.Random, num_requests: int) -> World:
    """Random arrivals, aborts and failures until num_requests have come, then a drain."""
    for _ in range(num_requests):
        prompt = random_prompt(rng, world.config.max_model_len - 1)
        for _ in range(rng.choice([1, 1, 1, 4])):  # n > 1 arrives as children at once
            world.add(prompt, random_params(rng), rng.randrange(3), rng.choice(SALTS))
        for _ in range(rng.choice([0, 1, 2, 8])):
            victims = tuple(rng.sample(world.live, 1)) if world.live and rng.random() < 0.05 else ()
            if rng.random() < 0.5:
                world.abort(victims)
                victims = ()
            world.step(abort=victims, fail=rng.random() < 0.01)
        if rng.random() < 0.05:
            before = world.scheduler.stats()["num_running"]
            assert world.scheduler.reset_prefix_cache() == (before == 0)
    world.drain()
    return world


CONFIGS = {
    "tight": (TIGHT, 10, True),
    "roomy": (replace(TIGHT, max_num_seqs=8, max_num_batched_tokens=64), 200, True),
    "priority": (replace(TIGHT, max_num_seqs=6, policy="priority"), 14, True),
    "whole prompts": (replace(TIGHT, max_num_batched_tokens=24, enable_chunked_prefill=False), 16, True),
    "short chunks": (replace(TIGHT, long_prefill_token_threshold=3), 12, True),
    "one at a time": (replace(TIGHT, max_num_seqs=1, max_num_batched_tokens=1), 10, True),
    "no prefix cache": (replace(TIGHT, max_num_seqs=6), 12, False),
}


@pytest.mark.parametrize("lag", [0, 1])
def test_random_traffic_over_ten_thousand_steps(lag: int):
    num_steps, num_preemptions, num_hits, num_pending_rows, num_unawaited = 0, 0, 0, 0, 0
    for name, (config, num_pages, prefix) in CONFIGS.items():
        for seed in range(2):
            world = drive(World(config, num_pages, prefix=prefix, lag=lag), random.Random(f"{name} {seed}"), 100)
            num_pending_rows += world.num_pending_rows
            num_unawaited += world.num_unawaited
            stats = world.scheduler.stats()
            num_steps += world.num_steps
            num_preemptions += stats["num_preemptions"]
            num_hits += stats["prefix_cache_hits"]
            assert prefix or stats["prefix_cache_queries"] == stats["num_cached_pages"] == 0
    assert num_steps >= 10_000
    assert num_preemptions > 300
    assert num_hits > 1_500
    assert (num_pending_rows > 5_000 and num_unawaited > 50) if lag else num_pending_rows == 0


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("name", CONFIGS)
def test_same_trace_same_schedule(name: str, lag: int):
    config, num_pages, prefix = CONFIGS[name]
    one, two = (drive(World(config, num_pages, prefix=prefix, lag=lag), random.Random(5), 20).trace for _ in range(2))
    assert one == two


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("name", CONFIGS)
def test_tokens_in_a_crowd_are_those_of_a_fresh_scheduler(name: str, lag: int):
    config, num_pages, prefix = CONFIGS[name]
    world = drive(World(config, num_pages, prefix=prefix, lag=lag), random.Random(9), 25)
    for life in world.lives.values():
        if life.end is not None and life.end.finish_reason is not FinishReason.ABORT:
            single = World(TIGHT, 10)
            request = life.request
            request_id = single.add(request.prompt_token_ids, request.params, salt=request.cache_salt)
            single.drain()
            assert single.lives[request_id].tokens == life.tokens


@pytest.mark.parametrize("lag", [0, 1])
def test_failed_step_at_every_moment_changes_no_token(lag: int):
    for k in range(30):
        world = World(TIGHT, 12, lag=lag)
        for document in DOCUMENTS:
            world.add(document[:13], SamplingParams(max_tokens=8, ignore_eos=True, prompt_logprobs=1))
        for number in range(30):
            world.step(fail=number == k)
        world.drain()


class SchedulerMachine(RuleBasedStateMachine):
    """Any order of everything that can happen to a scheduler."""

    @initialize(name=st.sampled_from(sorted(CONFIGS)), lag=st.sampled_from([0, 1, 1]))
    def start(self, name: str, lag: int) -> None:
        config, num_pages, prefix = CONFIGS[name]
        self.world = World(config, num_pages, prefix=prefix, lag=lag)

    @rule(seed=st.integers(0, 2**32), priority=st.integers(0, 2), salt=st.sampled_from(SALTS), num=st.integers(1, 3))
    def add(self, seed: int, priority: int, salt: str | None, num: int) -> None:
        rng = random.Random(seed)
        prompt = random_prompt(rng, self.world.config.max_model_len - 1)
        for _ in range(num):
            self.world.add(prompt, random_params(rng), priority, salt)

    @rule(num=st.integers(1, 6))
    def step(self, num: int) -> None:
        for _ in range(num):
            self.world.step()

    @precondition(lambda self: self.world.flights)
    @rule()
    def read_early(self) -> None:
        self.world.land()

    @rule()
    def fail_step(self) -> None:
        self.world.step(fail=True)

    @precondition(lambda self: self.world.live)
    @rule(data=st.data(), in_flight=st.booleans())
    def abort(self, data: st.DataObject, in_flight: bool) -> None:
        request_id = data.draw(st.sampled_from(self.world.live))
        if in_flight:
            self.world.step(abort=(request_id, request_id, "unknown"))
        else:
            self.world.abort((request_id, "unknown", request_id))
        self.world.abort((request_id,))

    @precondition(lambda self: self.world.live)
    @rule(data=st.data())
    def poison(self, data: st.DataObject) -> None:
        self.world.step(poison=data.draw(st.sampled_from(self.world.live)))

    @precondition(lambda self: self.world.live)
    @rule(data=st.data())
    def fail_request(self, data: st.DataObject) -> None:
        life = self.world.lives[data.draw(st.sampled_from(self.world.live))]
        life.allowed_ends = {FinishReason.ERROR}
        output = self.world.scheduler.fail_request(life.request.request_id, "out of luck")
        assert output is not None
        self.world.hear([output])
        assert self.world.scheduler.fail_request(life.request.request_id, "again") is None

    @rule()
    def reset_prefix_cache(self) -> None:
        idle = self.world.scheduler.stats()["num_running"] == 0
        assert self.world.scheduler.reset_prefix_cache() == idle
        assert not idle or len(self.world.scheduler.cache.prefix) == 0

    @invariant()
    def ledgers_agree(self) -> None:
        if hasattr(self, "world"):
            self.world.scheduler.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.drain()


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
