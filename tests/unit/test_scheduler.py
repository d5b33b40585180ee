from dataclasses import replace
from typing import Any

import pytest

from jaxserve.core.config import CacheConfig, SchedulerConfig
from jaxserve.core.errors import ConfigError, QueueFull, RequestError
from jaxserve.core.outputs import EngineOutput, FinishReason, TokenLogprobs
from jaxserve.core.params import SamplingParams
from jaxserve.core.request import Request
from jaxserve.core.step_result import RowResult
from jaxserve.schedule.output import PENDING_TOKEN, SchedulerOutput
from jaxserve.schedule.scheduler import Scheduler

EOS = 0
CONFIG = SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=16, max_model_len=32)


class Clock:
    """Time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def make(num_pages: int = 32, clock: Clock | None = None, **config: Any) -> Scheduler:
    return Scheduler(replace(CONFIG, **config), CacheConfig(4, num_pages), [EOS], clock=clock or Clock())


def add(scheduler: Scheduler, request_id: str, num_prompt: int = 3, priority: int = 0, **params: Any) -> Request:
    """A request of a prompt of its own (no two ids share a prefix)."""
    prompt = [1000 + ord(request_id[0])] * num_prompt
    params.setdefault("max_tokens", None)
    request = Request(request_id, prompt, SamplingParams(**params), arrival_time_s=90.0, priority=priority)
    scheduler.add(request)
    return request


def answer(output: SchedulerOutput, token: int = 5, **special: RowResult) -> list[RowResult]:
    return [
        special.get(row.request_id) or RowResult(row.request_id, token if row.samples else None) for row in output.rows
    ]


def step(scheduler: Scheduler, token: int = 5, **special: RowResult) -> tuple[SchedulerOutput, list[EngineOutput]]:
    output = scheduler.schedule()
    assert output is not None
    news = scheduler.update(output, answer(output, token, **special))
    scheduler.check()
    return output, news


def sizes(output: SchedulerOutput) -> dict[str, int]:
    return {row.request_id: len(row.token_ids) for row in output.rows}


def test_nothing_to_do():
    scheduler = make()
    assert scheduler.schedule() is None
    assert not scheduler.has_work


def test_a_request_from_prompt_to_end():
    clock = Clock()
    scheduler = make(clock=clock)
    request = add(scheduler, "a", 5, max_tokens=3)
    clock.now_s = 101.0
    output = scheduler.schedule()
    assert output is not None
    (row,), (start,) = output.rows, output.starts
    assert (row.start, row.token_ids, row.samples, row.num_prompt_tokens) == (0, request.prompt_token_ids, True, 5)
    assert (start.row, start.request_id, start.output_token_ids) == (row.row, "a", [])
    clock.now_s = 103.0
    (news,) = scheduler.update(output, answer(output, 7))
    assert (news.new_token_ids, news.queue_time_s, news.prefill_time_s) == ([7], 11.0, 2.0)
    output, (news,) = step(scheduler, 8)
    assert (output.rows[0].start, output.rows[0].token_ids, output.starts) == (5, [7], [])
    assert (news.new_token_ids, news.queue_time_s, news.finish_reason) == ([8], None, None)
    _, (news,) = step(scheduler, 9)
    assert (news.new_token_ids, news.finish_reason, news.stop_reason) == ([9], FinishReason.LENGTH, None)
    assert not scheduler.has_work


def test_chunks_mix_with_decodes_and_single_tokens_come_first():
    scheduler = make()
    add(scheduler, "a")
    step(scheduler)
    add(scheduler, "b", 30)
    add(scheduler, "c")
    output, news = step(scheduler)
    assert [(row.request_id, len(row.token_ids), row.samples) for row in output.rows] == [
        ("a", 1, True),
        ("b", 15, False),
    ]
    assert [one.request_id for one in news] == ["a"], "a chunk that samples nothing is no news"
    assert sizes(step(scheduler)[0]) == {"a": 1, "b": 15}
    assert sizes(step(scheduler)[0]) == {"a": 1, "b": 1, "c": 3}


def test_a_long_chunk_leaves_a_token_to_everybody_behind_it():
    scheduler = make(long_prefill_token_threshold=6)
    add(scheduler, "a", 30)
    add(scheduler, "b", 3)
    assert sizes(step(scheduler)[0]) == {"a": 6, "b": 3}
    assert sizes(step(scheduler)[0]) == {"a": 6, "b": 1}
    scheduler = make(max_num_batched_tokens=4)
    add(scheduler, "a", 30)
    step(scheduler)
    scheduler.config = replace(scheduler.config, max_num_batched_tokens=16)
    add(scheduler, "b", 2)
    scheduler.config = replace(scheduler.config, long_prefill_token_threshold=3)
    assert sizes(step(scheduler)[0]) == {"a": 3, "b": 2}
    scheduler.config = replace(scheduler.config, long_prefill_token_threshold=0)
    assert sizes(step(scheduler)[0]) == {"b": 1, "a": 15}


def test_without_chunking_a_prompt_waits_for_a_whole_budget_and_only_a_giant_is_split():
    scheduler = make(enable_chunked_prefill=False, long_prefill_token_threshold=2)
    add(scheduler, "a", 10)
    add(scheduler, "b", 10)
    assert sizes(step(scheduler)[0]) == {"a": 10}
    assert sizes(step(scheduler)[0]) == {"a": 1, "b": 10}
    add(scheduler, "c", 30)
    assert sizes(step(scheduler)[0]) == {"a": 1, "b": 1, "c": 14}


@pytest.mark.parametrize(
    ("params", "tokens", "reason", "stop_reason"),
    [
        ({}, [5, EOS], FinishReason.STOP, None),
        ({"stop_token_ids": [EOS]}, [EOS], FinishReason.STOP, None),
        ({"ignore_eos": True, "max_tokens": 2}, [EOS, EOS], FinishReason.LENGTH, None),
        ({"ignore_eos": True, "stop_token_ids": [EOS]}, [EOS], FinishReason.STOP, EOS),
        ({"stop_token_ids": [4, 6]}, [5, 6], FinishReason.STOP, 6),
        ({"min_tokens": 3}, [EOS, EOS, EOS], FinishReason.STOP, None),
        ({"min_tokens": 2, "stop_token_ids": [6]}, [6, 6], FinishReason.STOP, 6),
        ({"min_tokens": 2, "max_tokens": 2}, [EOS, 5], FinishReason.LENGTH, None),
        ({"max_tokens": 1}, [EOS], FinishReason.STOP, None),
        ({}, [5] * 29, FinishReason.LENGTH, None),
    ],
)
def test_ends(params: dict[str, Any], tokens: list[int], reason: FinishReason, stop_reason: int | None):
    scheduler = make()
    add(scheduler, "a", **params)
    for token in tokens[:-1]:
        assert step(scheduler, token)[1][0].finish_reason is None
    (news,) = step(scheduler, tokens[-1])[1]
    assert (news.new_token_ids, news.finish_reason, news.stop_reason) == ([tokens[-1]], reason, stop_reason)
    assert not scheduler.has_work


def test_rows_are_recycled_lowest_first():
    scheduler = make()
    for name in "abc":
        add(scheduler, name)
    assert [start.row for start in step(scheduler)[0].starts] == [0, 1, 2]
    scheduler.abort(["b", "a"])
    add(scheduler, "d")
    add(scheduler, "e")
    assert [(start.request_id, start.row) for start in step(scheduler)[0].starts] == [("d", 0), ("e", 1)]


def test_the_latest_is_preempted_and_comes_back_with_all_it_had():
    scheduler = make(num_pages=8, max_model_len=32)
    for name in "ab":
        add(scheduler, name, 12, ignore_eos=True)
    step(scheduler)
    output, news = step(scheduler)
    while not output.preempted:
        output, news = step(scheduler)
    assert (output.preempted, sizes(output)) == (["b"], {"a": 1})
    while "b" not in sizes(output):
        output, news = step(scheduler)
    (start,) = output.starts
    assert (start.request_id, len(start.output_token_ids)) == ("b", 4)
    assert [one.num_preemptions for one in news if one.request_id == "b"] == [1]
    assert scheduler.stats()["num_preemptions"] == 1


def test_under_priority_the_urgent_goes_first_and_the_least_urgent_loses_its_pages():
    scheduler = make(num_pages=8, policy="priority", max_num_seqs=2)
    add(scheduler, "a", 15, priority=2)
    add(scheduler, "b", 15, priority=1)
    add(scheduler, "c", 15, priority=0)
    output, _ = step(scheduler)
    assert [start.request_id for start in output.starts] == ["c", "b"]
    while not output.preempted:
        output, _ = step(scheduler)
    assert (output.preempted, output.starts) == (["b"], [])


def test_an_admitted_prompt_keeps_the_pages_it_still_needs():
    scheduler = make(num_pages=8, long_prefill_token_threshold=8)
    add(scheduler, "a", 24)
    add(scheduler, "b", 12)
    output, _ = step(scheduler)
    assert sizes(output) == {"a": 8}, "b fits now, but not once all of a is there"
    assert sizes(step(scheduler)[0]) == {"a": 8}


def test_abort_while_waiting_running_and_in_flight():
    scheduler = make(max_num_seqs=2)
    for name in "abc":
        add(scheduler, name)
    step(scheduler)
    output = scheduler.schedule()
    assert output is not None
    ended = scheduler.abort(["a", "c", "a", "nobody"])
    assert [(one.request_id, one.finish_reason, one.new_token_ids) for one in ended] == [
        ("a", FinishReason.ABORT, []),
        ("c", FinishReason.ABORT, []),
    ]
    scheduler.check()
    assert [one.request_id for one in scheduler.update(output, answer(output))] == ["b"]
    assert scheduler.abort(["a", "c"]) == []
    assert [one.request_id for one in scheduler.abort(["b"])] == ["b"]
    assert not scheduler.has_work
    assert scheduler.stats()["num_used_pages"] == 0


def test_a_result_never_reaches_a_newcomer_of_the_same_id():
    scheduler = make()
    add(scheduler, "a")
    output = scheduler.schedule()
    assert output is not None
    scheduler.abort(["a"])
    again = add(scheduler, "a")
    assert scheduler.update(output, answer(output)) == []
    assert (again.output_token_ids, again.num_computed_tokens) == ([], 0)


def test_an_id_in_use_is_refused():
    scheduler = make()
    add(scheduler, "a")
    with pytest.raises(RequestError, match="in use"):
        add(scheduler, "a")


def test_a_decision_stays_what_it_was():
    scheduler = make(num_pages=8)
    add(scheduler, "a", 4, max_tokens=9)
    output = scheduler.schedule()
    assert output is not None
    before = ([list(row.page_ids) for row in output.rows], [list(start.output_token_ids) for start in output.starts])
    scheduler.update(output, answer(output))
    for _ in range(6):
        step(scheduler)
    assert before == ([row.page_ids for row in output.rows], [start.output_token_ids for start in output.starts])


def test_a_failed_step_recomputes_everything_and_its_results_are_dropped():
    scheduler = make()
    add(scheduler, "a", 9)
    step(scheduler)
    output = scheduler.schedule()
    assert output is not None
    scheduler.fail_step()
    scheduler.check()
    assert scheduler.update(output, answer(output)) == []
    stale, output = output, scheduler.schedule()
    assert output is not None
    assert scheduler.update(stale, answer(stale, 6)) == [], "the next step is under way: still not its result"
    (news,) = scheduler.update(output, answer(output))
    assert (output.rows[0].start, len(output.rows[0].token_ids)) == (0, 10)
    assert output.starts[0].output_token_ids == [5]
    assert (news.num_preemptions, news.num_cached_tokens, news.prefill_time_s) == (1, 0, None)


def test_non_finite_logits_end_one_request_and_leave_nothing_in_the_cache():
    scheduler = make()
    add(scheduler, "a", 9)
    add(scheduler, "b", 5)
    _, news = step(scheduler, a=RowResult("a", 3, is_finite=False))
    errors = [one for one in news if one.finish_reason is FinishReason.ERROR]
    assert [(one.request_id, one.new_token_ids) for one in errors] == [("a", [])]
    assert "NaN" in (errors[0].error or "")
    assert len(scheduler.cache.prefix) == 1, "b's page alone"
    assert [one.new_token_ids for one in step(scheduler)[1]] == [[5]]


def test_one_request_can_be_failed():
    scheduler = make()
    add(scheduler, "a")
    add(scheduler, "b")
    step(scheduler)
    news = scheduler.fail_request("a", "the reason")
    assert news is not None
    assert (news.finish_reason, news.error) == (FinishReason.ERROR, "the reason")
    assert scheduler.fail_request("a", "again") is None
    assert sizes(step(scheduler)[0]) == {"b": 1}


def scored_results(output: SchedulerOutput) -> list[RowResult]:
    """Results whose prompt entries carry their position as token id."""
    results = answer(output)
    for row, result in zip(output.rows, results, strict=True):
        if row.num_prompt_logprobs is not None:
            stop = min(row.start + len(row.token_ids), row.num_prompt_tokens - 1)
            result.prompt_logprobs = [TokenLogprobs(at + 1, 0.0, 1) for at in range(row.start, stop)]
    return results


def test_prompt_logprobs_are_delivered_once_though_recomputed():
    scheduler = make()
    add(scheduler, "a", 20, prompt_logprobs=2)
    positions: list[int] = []
    for number in range(8):
        if number == 1:
            scheduler.fail_step()
            scheduler.config = replace(scheduler.config, max_num_batched_tokens=6)  # other chunks than before
        if number == 5:
            scheduler.fail_step()
        output = scheduler.schedule()
        assert output is not None
        for news in scheduler.update(output, scored_results(output)):
            positions += [entry.token_id for entry in news.prompt_logprobs or []]
        assert number < 5 or output.rows[0].num_prompt_logprobs is None, "all were delivered: none is asked for"
    assert positions == list(range(1, 20))


def test_siblings_share_pages_in_the_very_step_that_writes_them():
    scheduler = make()
    for name in ("s0", "s1", "s2"):
        add(scheduler, name, 10)
    output, news = step(scheduler)
    assert sizes(output) == {"s0": 10, "s1": 2, "s2": 2}
    assert len({tuple(row.page_ids[:2]) for row in output.rows}) == 1
    assert [one.num_cached_tokens for one in news] == [0, 8, 8]
    stats = scheduler.stats()
    assert (stats["prefix_cache_queries"], stats["prefix_cache_hits"], stats["num_used_pages"]) == (30, 16, 5)


def test_stats_of_a_quiet_moment():
    scheduler = make(max_num_seqs=1)
    add(scheduler, "a", 9)
    add(scheduler, "b", 4)
    step(scheduler)
    expected = {"num_running": 1, "num_waiting": 1, "num_waiting_tokens": 4, "num_pages": 32, "num_used_pages": 3}
    assert expected.items() <= scheduler.stats().items()
    scheduler.abort(["a", "b"])
    expected = {"num_running": 0, "num_waiting": 0, "num_waiting_tokens": 0, "num_used_pages": 0, "num_cached_pages": 2}
    assert expected.items() <= scheduler.stats().items()
    assert scheduler.reset_prefix_cache()
    assert scheduler.stats()["num_cached_pages"] == 0


def test_prefix_cache_is_not_reset_under_a_running_request():
    scheduler = make()
    add(scheduler, "a", 9)
    assert scheduler.reset_prefix_cache(), "waiting requests hold no pages"
    step(scheduler)
    assert not scheduler.reset_prefix_cache()


def test_queue_limits_refuse_with_a_time_to_come_back():
    scheduler = make(max_num_seqs=1, max_num_queued_reqs=1)
    add(scheduler, "a")
    add(scheduler, "b")  # the free row will take a at the next step
    with pytest.raises(QueueFull, match="max_num_queued_reqs=1") as error:
        add(scheduler, "c")
    assert error.value.retry_after_s == 10  # the head came at 90 s, now is 100 s
    step(scheduler)
    with pytest.raises(QueueFull):
        add(scheduler, "c")
    scheduler.abort(["b"])
    add(scheduler, "c")
    assert scheduler.stats()["num_waiting"] == 1


def test_token_limit_counts_waiting_prompts_but_never_refuses_a_lone_one():
    scheduler = make(max_num_seqs=1, max_num_queued_tokens=10)
    add(scheduler, "a", 20)
    with pytest.raises(
        QueueFull, match="20 tokens are waiting, this request brings 3 more and max_num_queued_tokens=10"
    ):
        add(scheduler, "b", 3)
    step(scheduler)
    add(scheduler, "b", 6)
    add(scheduler, "c", 4)
    with pytest.raises(QueueFull):
        add(scheduler, "d", 1)


@pytest.mark.parametrize(
    ("num_prompt", "code"), [(32, "context_length_exceeded"), (5000, "context_length_exceeded"), (0, None)]
)
def test_prompts_that_can_never_run_are_refused(num_prompt: int, code: str | None):
    scheduler = make(num_pages=8)
    with pytest.raises(RequestError) as error:
        add(scheduler, "a", num_prompt)
    assert (error.value.param, error.value.code) == ("prompt", code)
    if num_prompt:
        assert f"{num_prompt} tokens, but max_model_len=32 allows at most 31" in str(error.value)
    assert not scheduler.has_work


def test_the_longest_prompt_gets_its_one_token_from_the_smallest_pool():
    scheduler = make(num_pages=8)
    add(scheduler, "a", 31)
    assert step(scheduler)[1] == []
    assert [one.finish_reason for one in step(scheduler)[1]] == [FinishReason.LENGTH]


@pytest.mark.parametrize(
    ("num_pages", "config", "message"),
    [
        (7, {}, "max_model_len=32 tokens needs 8 pages of 4 tokens, but the pool has 7"),
        (8, {"max_num_batched_tokens": 3}, "max_num_batched_tokens=3 is less than max_num_seqs=4"),
        (8, {"max_num_seqs": 0}, "max_num_seqs=0 must be at least 1"),
        (8, {"policy": "lifo"}, "'lifo' must be 'fcfs' or 'priority'"),
    ],
)
def test_settings_that_cannot_work_are_refused(num_pages: int, config: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        make(num_pages, **config)


def run_ahead(scheduler: Scheduler) -> tuple[SchedulerOutput, SchedulerOutput]:
    """Two steps in flight."""
    first = scheduler.schedule()
    scheduler.check()
    second = scheduler.schedule()
    scheduler.check()
    assert first is not None and second is not None
    return first, second


def test_a_step_goes_on_from_a_token_that_is_not_read_yet():
    scheduler = make()
    request = add(scheduler, "a", 3, max_tokens=3)
    first, second = run_ahead(scheduler)
    assert [(row.start, row.token_ids, row.samples) for row in second.rows] == [(3, [PENDING_TOKEN], True)]
    assert second.starts == []
    assert [one.new_token_ids for one in scheduler.update(first, answer(first, 7))] == [[7]]
    scheduler.check()
    assert (request.num_computed_tokens, request.num_tokens, request.num_pending_tokens) == (3, 4, 1)
    third = scheduler.schedule()
    assert third is not None
    assert [one.new_token_ids for one in scheduler.update(second, answer(second, 8))] == [[8]]
    assert scheduler.schedule() is None, "the third token is the last: nothing comes after it"
    scheduler.check()
    (news,) = scheduler.update(third, answer(third, 9))
    assert (news.new_token_ids, news.finish_reason) == ([9], FinishReason.LENGTH)


@pytest.mark.parametrize("params", [{"max_tokens": 1}, {}])
def test_a_predictable_end_is_not_scheduled_past(params: dict[str, Any]):
    scheduler = make()
    add(scheduler, "a", 31, **params)
    while (output := scheduler.schedule()) is not None and not output.rows[0].samples:
        scheduler.update(output, answer(output))
    assert output is not None
    assert scheduler.schedule() is None
    assert [one.finish_reason for one in scheduler.update(output, answer(output))] == [FinishReason.LENGTH]


def test_what_was_scheduled_past_an_end_finds_no_taker():
    scheduler = make()
    add(scheduler, "a", 4)
    add(scheduler, "b", 4)
    first, second = run_ahead(scheduler)
    ended = scheduler.update(first, answer(first, a=RowResult("a", EOS)))
    assert [one.finish_reason for one in ended] == [FinishReason.STOP, None]
    scheduler.check()
    again = add(scheduler, "a", 2)
    third = scheduler.schedule()  # a newcomer in the row and the pages of the one that ended, of the same id too
    assert third is not None and [start.row for start in third.starts] == [second.rows[0].row]
    assert [one.request_id for one in scheduler.update(second, answer(second))] == ["b"]
    scheduler.check()
    assert again.output_token_ids == []
    scheduler.update(third, answer(third))
    assert again.output_token_ids == [5]


def test_a_step_without_takers_is_not_awaited():
    scheduler = make()
    add(scheduler, "a", 4)
    first, second = run_ahead(scheduler)
    scheduler.update(first, answer(first, EOS))
    scheduler.check()
    assert not scheduler.has_work
    assert not scheduler.awaits(second.step_id)
    assert scheduler.update(second, answer(second)) == []


def test_a_page_filled_by_a_pending_token_has_no_name_until_the_token_is_known():
    scheduler = make()
    request = add(scheduler, "a", 3)
    first, second = run_ahead(scheduler)
    assert request.num_published_pages == 0
    scheduler.update(first, answer(first))
    third = scheduler.schedule()
    assert request.num_published_pages == 1, "known now, and the step in flight fills it before anybody reads it"
    scheduler.update(second, answer(second))
    assert third is not None and third.rows[0].start == 4


def test_preempted_with_a_token_in_flight_drops_the_token():
    scheduler = make(num_pages=8, max_model_len=32)
    requests = {name: add(scheduler, name, 12, ignore_eos=True) for name in "ab"}
    flights = [scheduler.schedule()]
    while (output := scheduler.schedule()) is not None and not output.preempted:
        flights.append(output)
        first = flights.pop(0)
        assert first is not None
        scheduler.update(first, answer(first))
        scheduler.check()
    assert output is not None, "nobody was preempted"
    scheduler.check()
    (last,) = flights
    assert output is not None and last is not None
    assert output.preempted == ["b"] and "b" in sizes(last)
    num_known = len(requests["b"].output_token_ids)
    assert [one.request_id for one in scheduler.update(last, answer(last))] == ["a"]
    assert len(requests["b"].output_token_ids) == num_known
    scheduler.check()


def test_a_failed_step_takes_the_one_after_it_along():
    scheduler = make()
    add(scheduler, "a", 4)
    first, second = run_ahead(scheduler)
    scheduler.fail_step()
    scheduler.check()
    assert not scheduler.awaits(first.step_id) and not scheduler.awaits(second.step_id)
    assert scheduler.update(first, answer(first)) == scheduler.update(second, answer(second)) == []
    assert sizes(step(scheduler)[0]) == {"a": 4}


def test_prompt_logprobs_are_asked_for_once_though_the_first_are_still_in_flight():
    scheduler = make(long_prefill_token_threshold=3)
    add(scheduler, "a", 6, prompt_logprobs=1)
    first, second = run_ahead(scheduler)
    assert [output.rows[0].num_prompt_logprobs for output in (first, second)] == [1, 1]
    positions = [
        e.token_id for one in scheduler.update(first, scored_results(first)) for e in one.prompt_logprobs or ()
    ]
    third = scheduler.schedule()
    assert third is not None and third.rows[0].num_prompt_logprobs is None
    positions += [
        e.token_id for one in scheduler.update(second, scored_results(second)) for e in one.prompt_logprobs or ()
    ]
    assert positions == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("params", "num_waits"),
    [
        ({}, 0),
        ({"min_tokens": 3, "stop_token_ids": [6]}, 1),  # after the third token stops are allowed
        ({"bad_words_token_ids": [[8]]}, 0),
        ({"bad_words_token_ids": [[8, 9]]}, 6),
        ({"presence_penalty": 1.0, "logit_bias": {3: 1.0}, "allowed_token_ids": [5]}, 0),
    ],
)
def test_a_step_whose_biases_depend_on_a_pending_token_waits_for_it(params: dict[str, Any], num_waits: int):
    scheduler = make()
    add(scheduler, "a", 3, max_tokens=6, **params)
    waits, flights = 0, list[SchedulerOutput]()
    while scheduler.has_work:
        if scheduler.may_run_ahead and (output := scheduler.schedule()) is not None:
            flights.append(output)
            if len(flights) == 1:
                continue
        elif flights and not scheduler.may_run_ahead:
            waits += 1
        scheduler.update(flights[0], answer(flights.pop(0)))
        scheduler.check()
    assert waits == num_waits


def test_a_third_step_has_to_wait():
    scheduler = make()
    add(scheduler, "a")
    _, second = run_ahead(scheduler)
    assert not scheduler.may_run_ahead
    with pytest.raises(AssertionError, match="needs the tokens"):
        scheduler.schedule()
    with pytest.raises(AssertionError, match="comes before"):
        scheduler.update(second, answer(second))


def test_every_row_needs_a_result():
    scheduler = make()
    add(scheduler, "a")
    output = scheduler.schedule()
    assert output is not None
    with pytest.raises(AssertionError, match="no results for"):
        scheduler.update(output, [])


def test_check_sees_a_wrong_ledger():
    scheduler = make()
    request = add(scheduler, "a", 9)
    step(scheduler)
    request.page_ids.append(request.page_ids[0])
    with pytest.raises(AssertionError):
        scheduler.check()
