"""A step is dispatched before the one before is read, and nobody can tell from the answers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from engine_driver import Answer, Driver, TieJudge, Wish, make_engine
from engines import small_args
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxserve.core.errors import EngineDead
from jaxserve.core.outputs import FinishReason
from jaxserve.core.params import SamplingParams
from jaxserve.core.request import Request
from jaxserve.engine.core import EngineCore
from jaxserve.engine.messages import AddRequest
from jaxserve.llm import LLM
from jaxserve.runner.model_runner import StepFailedError
from jaxserve.sampling.rows import RowSampling
from jaxserve.schedule.ahead import must_see_token
from jaxserve.schedule.output import PENDING_TOKEN, RowStart, ScheduledRow, SchedulerOutput

VOCAB = 512


class Log:
    """Writes down when an engine's steps are dispatched and collected; fails(kind, step_id) makes one of them fail."""

    def __init__(self, core: EngineCore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, int]] = []
        self.fails: Callable[[str, int], bool] = lambda kind, step_id: False
        dispatch, collect = core.runner.dispatch, core.runner.collect
        monkeypatch.setattr(core.runner, "dispatch", lambda s: self._call("dispatch", s.step_id, dispatch, s))
        monkeypatch.setattr(core.runner, "collect", lambda f: self._call("collect", f.scheduled.step_id, collect, f))

    def _call(self, kind: str, step_id: int, function: Callable[[Any], Any], argument: Any) -> Any:
        self.calls.append((kind, step_id))
        if self.fails(kind, step_id):
            raise StepFailedError(f"{kind} of step {step_id}")
        return function(argument)

    def most_in_flight(self) -> int:
        counts = np.cumsum([1 if kind == "dispatch" else -1 for kind, _ in self.calls])
        return int(counts.max())


@pytest.fixture(scope="module")
def engines(tiny_checkpoint):
    """One that runs ahead, one that does not, and one with so few pages that it preempts."""
    limits: dict[str, Any] = dict(max_model_len=64, kv_cache_memory_bytes=1 << 20)
    return {
        "ahead": Driver(make_engine(tiny_checkpoint, **limits)),
        "waits": Driver(make_engine(tiny_checkpoint, **limits, async_scheduling=False)),
        "tight": Driver(make_engine(tiny_checkpoint, **limits | dict(kv_cache_memory_bytes=20 * 4 * 512))),
    }


@pytest.fixture
def core(engines) -> EngineCore:
    return engines["ahead"].core


@pytest.fixture
def log(core, monkeypatch) -> Log:
    return Log(core, monkeypatch)


def prompt(seed: int, size: int = 9) -> list[int]:
    return np.random.default_rng(seed).integers(5, VOCAB, size).tolist()


def plain(max_tokens: int = 8, **fields: Any) -> SamplingParams:
    greedy: dict[str, Any] = dict(temperature=0.0, ignore_eos=True)
    return SamplingParams(max_tokens=max_tokens, **(greedy | fields))


def test_the_next_step_is_dispatched_before_the_last_one_is_read(core, log):
    core.add(AddRequest("a", prompt(0), plain(4), 0.0))
    assert core.step() == [], "nothing waits for the first step"
    assert [len(output.new_token_ids) for output in core.step()] == [1]
    while core.has_work:
        core.step()
    kinds = [(kind, step_id - log.calls[0][1]) for kind, step_id in log.calls]
    assert kinds[:5] == [("dispatch", 0), ("dispatch", 1), ("collect", 0), ("dispatch", 2), ("collect", 1)]
    assert kinds[5:] == [("dispatch", 3), ("collect", 2), ("collect", 3)], "no fifth: the fourth token is the last"


def test_no_async_scheduling_waits_for_each_step(engines, monkeypatch):
    log = Log(engines["waits"].core, monkeypatch)
    engines["waits"].run([Wish(prompt(i), plain(), arrives=i) for i in range(4)])
    assert log.most_in_flight() == 1


def test_the_debug_mode_sees_a_pending_token_that_nobody_samples(core):
    builder = core.runner._builder
    builder.start_row(RowStart(0, "x", plain(), 0, [5], []))
    builder.build(SchedulerOutput(1, [ScheduledRow("x", 0, 0, [5], [0], True, 1)], num_tokens=1))
    output = SchedulerOutput(2, [ScheduledRow("x", 0, 1, [PENDING_TOKEN], [0], True, 1)], num_tokens=1)
    assert builder.build(output)["token_ids_T"].tolist() == [-1], "what state row 0 sampled"
    with pytest.raises(AssertionError, match="nobody samples"):
        builder.build(output)


@pytest.mark.parametrize(
    ("fields", "is_ahead"),
    [
        (dict(presence_penalty=1.0, logit_bias={7: 2.0}, bad_words_token_ids=[[9]], stop_token_ids=[8]), True),
        (dict(bad_words_token_ids=[[9, 10]]), False),
    ],
)
def test_what_depends_on_the_last_token_does_not_run_ahead(engines, log, fields: dict[str, Any], is_ahead: bool):
    engines["ahead"].run([Wish(prompt(1), plain(**fields))])
    assert log.most_in_flight() == (2 if is_ahead else 1)


def test_min_tokens_waits_once_for_the_token_that_lifts_the_ban(engines, log):
    engines["ahead"].run([Wish(prompt(1), plain(10, min_tokens=4, ignore_eos=False))])
    first = log.calls[0][1]
    order = [
        log.calls.index(("dispatch", first + i)) > log.calls.index(("collect", first + i - 1)) for i in range(1, 6)
    ]
    assert order == [False, False, False, True, False]


OPTIONS: list[dict[str, Any]] = [
    {},
    dict(temperature=1.0, seed=1),
    dict(temperature=1.3, seed=2, top_p=0.8, top_k=50, min_p=0.01),
    dict(temperature=0.8, seed=3, presence_penalty=1.0, frequency_penalty=0.5, repetition_penalty=1.2),
    dict(repetition_penalty=1.4, logprobs=3),
    dict(temperature=1.0, seed=4, logprobs=0, prompt_logprobs=2),
    dict(temperature=1.5, seed=5, min_tokens=5, ignore_eos=False, stop_token_ids=list(range(60, 260))),
    dict(temperature=1.5, seed=6, ignore_eos=False, stop_token_ids=list(range(200, 300))),
    dict(temperature=1.0, seed=7, bad_words_token_ids=[[i, j] for i in range(5, 60) for j in range(5, 60)]),
    dict(temperature=1.0, seed=8, logit_bias={7: 4.0, 9: -100.0}, allowed_token_ids=list(range(5, 300))),
]


def crowd(seed: int) -> list[Wish]:
    """Twenty requests over all options, arriving over time, some leaving early."""
    rng = np.random.default_rng(seed)
    stem = prompt(seed, 24)
    wishes = []
    for i in range(20):
        tokens = stem[: int(rng.choice([0, 8, 13, 24]))] + prompt(1000 * seed + i, int(rng.integers(1, 12)))
        arrives = int(rng.integers(0, 20))
        leaves = arrives + int(rng.integers(1, 8)) if i % 7 == 6 else None
        params = plain(int(rng.integers(5, 14)), **OPTIONS[int(rng.integers(len(OPTIONS)))])
        wishes.append(Wish(tokens, params, arrives, leaves))
    return wishes


def assert_equal(judge: TieJudge, wish: Wish, got: Answer, want: Answer) -> None:
    """Tokens, ends and log probabilities; of a request that left early, as far as both came."""
    num = min(len(got.token_ids), len(want.token_ids)) if wish.leaves is not None else None
    judge.assert_same(wish, got.token_ids[:num], want.token_ids[:num])
    assert [e.token_id for e in got.prompt_logprobs] == [e.token_id for e in want.prompt_logprobs]
    if got.token_ids == want.token_ids:
        assert got.finish_reason == want.finish_reason
        pairs = [*zip(got.logprobs, want.logprobs, strict=True)]
        pairs += zip(got.prompt_logprobs, want.prompt_logprobs, strict=True)
        for one, other in pairs:
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert one.top_logprobs == pytest.approx(other.top_logprobs, abs=1e-4)


@pytest.mark.parametrize("where", ["ahead", "tight"])
@pytest.mark.parametrize("seed", range(4))
def test_ahead_or_not_is_the_same_token_for_token(engines, monkeypatch, seed: int, where: str):
    judge = TieJudge(engines["waits"].core)
    log = Log(engines[where].core, monkeypatch)
    wishes = crowd(seed)
    answers, wanted = engines[where].run(wishes), engines["waits"].run(wishes)
    for wish, got, want in zip(wishes, answers, wanted, strict=True):
        assert_equal(judge, wish, got, want)
    assert log.most_in_flight() == 2
    assert judge.num_ties <= 1
    assert where == "ahead" or sum(answer.num_preemptions for answer in answers) > 0


def test_samples_of_one_prompt_are_the_same(tiny_checkpoint):
    params = SamplingParams(n=4, temperature=1.0, seed=11, max_tokens=12, logprobs=1)
    tokens = []
    for is_async in (True, False):
        llm = LLM(**small_args(tiny_checkpoint, async_scheduling=is_async))
        (output,) = llm.generate([{"prompt_token_ids": prompt(3, 14)}], params)
        tokens.append([list(completion.token_ids) for completion in output.outputs])
    assert tokens[0] == tokens[1]


def test_a_row_changes_hands_while_its_last_step_is_in_flight(engines, core, log):
    """The token that comes after an end belongs to nobody: not to the mirror of the row's next request either."""
    first = engines["ahead"].alone(Wish(prompt(4), plain(6))).token_ids
    stops = plain(20, stop_token_ids=[first[2]])
    banned = plain(9, min_tokens=6, ignore_eos=False, stop_token_ids=list(range(5, 200)))
    wishes = [Wish(prompt(4), stops), *(Wish(prompt(5), banned, arrives=3 + i) for i in range(3))]
    answers = engines["ahead"].run(wishes)
    assert answers[0].finish_reason is FinishReason.STOP
    judge = TieJudge(core)
    for wish, answer in zip(wishes[1:], answers[1:], strict=True):
        judge.assert_same(wish, answer.token_ids, engines["waits"].alone(wish).token_ids)
    assert judge.num_ties == 0


def test_a_step_whose_requests_have_ended_is_not_waited_for(engines, core, log):
    wish = Wish(prompt(6), plain(12))
    third = engines["ahead"].alone(wish).token_ids[2]
    log.calls.clear()
    core.add(AddRequest("stops", wish.prompt, plain(12, stop_token_ids=[third]), 0.0))
    while core.has_work:
        core.step()
    kinds = [kind for kind, _ in log.calls]
    assert kinds.count("dispatch") == kinds.count("collect") + 1
    assert not core._flights and core.step() == []
    core.add(AddRequest("leaves", prompt(7), plain(12), 0.0))
    core.step()
    assert len(core._flights) == 1
    (news,) = core.abort(["leaves"])
    assert news.finish_reason is FinishReason.ABORT
    assert not core.has_work and not core._flights
    assert core.stats().num_used_pages == 0


@pytest.mark.parametrize("kind", ["dispatch", "collect"])
@pytest.mark.parametrize("every", [1, 3, 4])
def test_a_step_that_fails_costs_time_only(engines, core, log, kind: str, every: int):
    """Whether the device refuses a step or fails in one while another is in flight."""
    wishes = [Wish(prompt(i), plain(9, temperature=0.8, seed=i, logprobs=1), i) for i in range(6)]
    wanted = engines["waits"].run(wishes)
    num_failed = 0

    def fails(what: str, step_id: int) -> bool:
        nonlocal num_failed
        is_now = what == kind and sum(1 for name, _ in log.calls if name == kind) % (every + 1) == every
        num_failed += is_now
        return is_now

    log.fails = fails
    answers = engines["ahead"].run(wishes)
    assert num_failed >= 3
    judge = TieJudge(core)
    for wish, got, want in zip(wishes, answers, wanted, strict=True):
        assert_equal(judge, wish, got, want)
    assert judge.num_ties <= 1
    assert core.stats().num_used_pages == 0


@pytest.mark.parametrize("kind", ["dispatch", "collect"])
def test_an_engine_whose_steps_all_fail_gives_up(engines, core, log, kind: str):
    log.fails = lambda what, step_id: what == kind
    core.add(AddRequest("a", prompt(8), plain(), 0.0))
    with pytest.raises(EngineDead, match="3 steps in a row failed"):
        _ = [core.step() for _ in range(10)]
    core.abort(["a"])
    core.scheduler.fail_step()
    core.runner.rebuild()
    core._num_failed_steps = 0
    assert not core._flights


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_biases_change_only_where_the_scheduler_waits(data: st.DataObject):
    """`must_see_token` on the host plane knows when `RowSampling.update` has something to tell the device."""
    tokens = st.integers(0, 5)
    params = SamplingParams(
        max_tokens=20,
        min_tokens=data.draw(st.integers(0, 6)),
        ignore_eos=data.draw(st.booleans()),
        stop_token_ids=data.draw(st.sampled_from([None, [4]])),
        bad_words_token_ids=data.draw(
            st.one_of(st.none(), st.lists(st.lists(tokens, min_size=1, max_size=3), max_size=2))
        ),
        logit_bias=data.draw(st.sampled_from([None, {1: 2.0}])),
        presence_penalty=data.draw(st.sampled_from([0.0, 1.0])),
    )
    request = Request("a", [1, 2], params, output_token_ids=data.draw(st.lists(tokens, max_size=3)))
    row = RowSampling(params, request.prompt_token_ids, request.output_token_ids, 6, [3])
    for token in data.draw(st.lists(tokens, min_size=1, max_size=8)):
        request.num_pending_tokens = 1
        waits = must_see_token(request)
        had_bias = row.has_bias
        changed = row.update(token) is not None
        assert waits or not changed
        assert waits or row.has_bias == had_bias
        request.output_token_ids.append(token)
        request.num_pending_tokens = 0
        assert not must_see_token(request)
