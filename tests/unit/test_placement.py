"""Placement: where known pages are, unless that replica is far ahead; else where the fewest tokens are."""

import itertools
from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from jaxserve.core.params import SamplingParams
from jaxserve.core.request import Request
from jaxserve.engine.placement import Capacity, Placement, Ticket

PAGE = 4
CAPACITY = Capacity(max_num_seqs=8, max_num_batched_tokens=64, num_pages=16)
NUMBERS = itertools.count()


def request_of(ids: list[int], **fields: Any) -> Request:
    return Request(f"r{next(NUMBERS)}", ids, fields.pop("params", SamplingParams()), **fields)


def fleet_of(num: int, capacity: Capacity = CAPACITY, page_size: int | None = PAGE) -> Placement:
    placement = Placement(page_size)
    for index in range(num):
        placement.open(index, capacity)
    return placement


def placed(placement: Placement, ids: list[int], **fields: Any) -> Ticket:
    ticket = placement.place(request_of(ids, **fields))
    assert ticket is not None
    return ticket


def prompt(name: int, length: int = 9) -> list[int]:
    return [1000 * name + position for position in range(length)]


def test_strangers_go_where_the_fewest_tokens_are() -> None:
    placement = fleet_of(3)
    assert placed(placement, prompt(1, 20)).replica == 0
    assert placed(placement, prompt(2, 5)).replica == 1
    assert placed(placement, prompt(3, 7)).replica == 2
    assert placed(placement, prompt(4, 6)).replica == 1
    assert placed(placement, prompt(5, 1)).replica == 2


def test_tokens_that_were_generated_count() -> None:
    placement = fleet_of(2)
    first = placed(placement, prompt(1, 3))
    assert placed(placement, prompt(2, 4)).replica == 1
    placement.note_tokens(first, 5)
    assert placed(placement, prompt(3, 3)).replica == 1
    placement.end(first)
    assert placed(placement, prompt(4, 3)).replica == 0


def test_a_known_prefix_leads_back_also_when_other_replicas_are_idle() -> None:
    placement = fleet_of(2)
    first = placed(placement, prompt(1))
    other = placed(placement, prompt(2, 40))
    assert other.replica == 1
    placement.end(other)
    again = placed(placement, [*prompt(1)[:8], 7, 7, 7])
    assert (again.replica, again.num_prefill_tokens) == (0, 3)
    assert placed(placement, [*prompt(2)[:4], 8, 8]).replica == 1
    assert placed(placement, [*prompt(1)[:3], 9]).replica == 1, "less than a page is nothing"
    placement.end(first)


def test_the_longest_match_wins_over_the_fewest_tokens() -> None:
    placement = fleet_of(2)
    shared = prompt(1, 8)
    assert placed(placement, [*shared, 1, 2, 3, 4, 5]).replica == 0
    for _ in range(CAPACITY.max_lead + 1):  # until the first one leads too far
        placed(placement, [*shared, 1, 2, 3, 4, 5])
    assert placement.requests_of(1) == 1
    assert placed(placement, [*shared, 5]).replica == 1, "both know its two pages: the fewer tokens decide"


def test_a_replica_that_leads_too_far_is_passed_over() -> None:
    placement = fleet_of(2)
    replicas = [placed(placement, prompt(1)).replica for _ in range(8)]
    assert replicas[: CAPACITY.max_lead + 1] == [0] * (CAPACITY.max_lead + 1)
    assert 1 in replicas
    counts = [placement.requests_of(index) for index in range(2)]
    assert max(counts) - min(counts) <= CAPACITY.max_lead + 1


def test_salts_part_the_pages_and_some_requests_read_none() -> None:
    placement = fleet_of(2)
    placement.end(placed(placement, prompt(1)))
    filler = placed(placement, prompt(2, 3))
    assert filler.replica == 0
    assert placed(placement, prompt(1), cache_salt="other").replica == 1
    computing = placed(placement, prompt(1), params=SamplingParams(prompt_logprobs=1))
    assert computing.num_prefill_tokens == 9
    assert placed(fleet_of(1, page_size=None), prompt(1)).num_prefill_tokens == 9


def test_full_by_rows_and_by_prompts() -> None:
    placement = fleet_of(1)
    tickets = [placed(placement, prompt(index, 2)) for index in range(CAPACITY.max_requests)]
    assert placement.place(request_of([1])) is None
    placement.end(tickets[0])
    assert placement.place(request_of([1])) is not None
    placement = fleet_of(1)
    long = placed(placement, prompt(1, 1000))
    assert placement.place(request_of([1])) is None, "a thousand tokens are more than two steps of 64"
    placement.note_tokens(long, 1)
    assert placement.place(request_of([1])) is not None


def test_pages_are_forgotten_with_the_pool_with_the_replica_and_when_told() -> None:
    placement = fleet_of(1)

    def is_known(ids: list[int]) -> bool:
        ticket = placed(placement, ids)
        placement.end(ticket)
        return ticket.num_prefill_tokens < len(ids)

    assert not is_known(prompt(1))
    assert is_known(prompt(1))
    for index in range(2, 10):  # two pages each, and the pool has sixteen
        assert not is_known(prompt(index))
    assert not is_known(prompt(1))
    assert is_known(prompt(9))
    placement.forget_pages()
    assert not is_known(prompt(9))
    placement.open(0, CAPACITY)
    assert not is_known(prompt(9))
    placement.shut(0)
    assert placement.place(request_of([1])) is None
    assert (placement.num_rows, placement.num_requests) == (0, 0)


class PlacementMachine(RuleBasedStateMachine):
    """Against plain sums over the tickets, and against a second Placement told the same."""

    tickets = Bundle("tickets")

    def __init__(self) -> None:
        super().__init__()
        self.both = (fleet_of(3), fleet_of(3))
        self.live: list[tuple[Ticket, Ticket]] = []
        self.up = {0, 1, 2}

    def numbers(self, replica: int) -> tuple[int, int, int]:
        mine = [ticket for ticket, _ in self.live if ticket.replica == replica]
        return len(mine), sum(one.num_tokens for one in mine), sum(one.num_prefill_tokens for one in mine)

    def is_full(self, replica: int) -> bool:
        num_requests, _, num_prefill = self.numbers(replica)
        return num_requests >= 9 or num_prefill >= 128

    @rule(target=tickets, name=st.integers(0, 3), length=st.integers(1, 50))
    def place(self, name: int, length: int) -> tuple[Ticket, Ticket] | None:
        open_ones = [index for index in self.up if not self.is_full(index)]
        before = {index: self.numbers(index) for index in self.up}
        first, second = (one.place(request_of(prompt(name, length))) for one in self.both)
        if first is None or second is None:
            assert first is second is None
            assert not open_ones
            return None
        assert first.replica == second.replica in open_ones, "the same history, the same choice; never a full one"
        assert 0 < first.num_prefill_tokens <= first.num_tokens == length
        least = min(numbers[1] for index, numbers in before.items() if index in open_ones)
        if first.num_prefill_tokens == length:
            assert before[first.replica][1] == least, "nothing known: the fewest tokens"
        elif before[first.replica][1] > least:
            assert before[first.replica][0] - min(numbers[0] for numbers in before.values()) <= CAPACITY.max_lead
        self.live.append((first, second))
        return first, second

    @rule(pair=tickets, num_new=st.integers(1, 4))
    def note_tokens(self, pair: Any, num_new: int) -> None:
        if pair is not None and pair in self.live:
            for placement, ticket in zip(self.both, pair, strict=True):
                placement.note_tokens(ticket, num_new)

    @rule(pair=consumes(tickets))
    def end(self, pair: Any) -> None:
        if pair is not None and pair in self.live:
            self.live.remove(pair)
            for placement, ticket in zip(self.both, pair, strict=True):
                placement.end(ticket)

    @precondition(lambda self: self.up)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        index = data.draw(st.sampled_from(sorted(self.up)))
        self.up.remove(index)
        self.live = [pair for pair in self.live if pair[0].replica != index]
        for placement in self.both:
            placement.shut(index)

    @precondition(lambda self: len(self.up) < 3)
    @rule()
    def come_back(self) -> None:
        index = min({0, 1, 2} - self.up)
        self.up.add(index)
        for placement in self.both:
            placement.open(index, CAPACITY)

    @invariant()
    def sums_agree(self) -> None:
        for placement in self.both:
            assert placement.num_requests == len(self.live)
            assert placement.num_rows == 8 * len(self.up)
            for index, replica in placement._replicas.items():
                sums = (replica.num_requests, replica.num_tokens, replica.num_prefill_tokens)
                assert sums == self.numbers(index)
                assert len(replica.known) <= CAPACITY.num_pages


TestPlacement = PlacementMachine.TestCase
TestPlacement.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
