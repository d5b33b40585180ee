"""What must hold between the scheduler's ledgers at any moment; each function raises AssertionError if it does not."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from jaxserve.cache.paged_cache import PagedCache
from jaxserve.core.request import Request
from jaxserve.schedule.output import ScheduledRow
from jaxserve.schedule.queue import WaitingQueue


@dataclass(frozen=True, slots=True)
class Flight:
    """A step that is scheduled and not updated. rows: by request id, of those that still wait for its results."""

    step_id: int
    rows: dict[str, ScheduledRow]


def check_requests(requests: Mapping[str, Request], running: Sequence[Request], queue: WaitingQueue) -> None:
    """Every live request either runs or waits, once."""
    ids = [request.request_id for request in (*running, *queue)]
    assert sorted(ids) == sorted(requests), "a request is lost, or both waits and runs"
    assert all(requests[request.request_id] is request for request in (*running, *queue)), "two requests of one id"
    assert list(running) == sorted(running, key=queue.key), "running requests are out of order"
    assert queue.num_tokens == sum(request.num_tokens for request in queue), "waiting tokens are miscounted"
    for request in queue:
        assert request.row is None, f"{request.request_id} waits but has a row"
        assert not request.page_ids, f"{request.request_id} waits but holds pages"


def check_flights(flights: Sequence[Flight], running: Iterable[Request]) -> None:
    """At most two steps are in flight, somebody waits for each, and the requests' ledgers say what is in them."""
    assert len(flights) <= 2 and all(flight.rows for flight in flights), "steps in flight are too many or without taker"
    by_id = {request.request_id: request for request in running}
    for flight in flights:
        assert flight.rows.keys() <= by_id.keys(), "a request in flight does not run"
    for request_id, request in by_id.items():
        start, num_sampled = request.num_computed_tokens, 0
        for row in (flight.rows[request_id] for flight in flights if request_id in flight.rows):
            assert row.start == start and row.row == request.row, f"{request_id}: steps in flight do not join"
            start += len(row.token_ids)
            num_sampled += row.samples
        assert start == request.num_reached_tokens, f"{request_id} miscounts its tokens in flight"
        assert num_sampled == request.num_pending_tokens, f"{request_id} miscounts its pending tokens"


def check_rows(running: Sequence[Request], free_rows: Sequence[int], max_num_seqs: int) -> None:
    """Every row is free or belongs to one running request."""
    rows = [request.row for request in running if request.row is not None]
    assert len(rows) == len(running), "a running request has no row"
    assert sorted([*rows, *free_rows]) == list(range(max_num_seqs)), "a row is lost or shared"


def check_tables(running: Sequence[Request], cache: PagedCache) -> None:
    """Every table is exactly as long as its computed and scheduled tokens need, and the page counts agree."""
    cache.check(running)
    for request in running:
        num_tokens = request.num_reached_tokens
        num_known = request.num_tokens + request.num_pending_tokens
        assert num_tokens <= num_known, f"{request.request_id} computes tokens that nobody samples"
        named = request.num_published_pages * cache.page_size
        assert named <= request.num_tokens, f"{request.request_id} names a page of tokens it does not know"
        num_pages = cache.num_pages_of(num_tokens)
        assert len(request.page_ids) == num_pages, (
            f"{request.request_id} holds {len(request.page_ids)}, not {num_pages}"
        )
