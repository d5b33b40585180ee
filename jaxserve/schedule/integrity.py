"""What must hold between the scheduler's ledgers at any moment; each function raises AssertionError if it does not."""

from collections.abc import Mapping, Sequence

from jaxserve.cache.paged_cache import PagedCache
from jaxserve.core.request import Request
from jaxserve.schedule.queue import WaitingQueue


def check_requests(
    requests: Mapping[str, Request], running: Sequence[Request], queue: WaitingQueue, num_in_flight: Mapping[str, int]
) -> None:
    """Every live request either runs or waits, once, and only running ones are in flight."""
    ids = [request.request_id for request in (*running, *queue)]
    assert sorted(ids) == sorted(requests), "a request is lost, or both waits and runs"
    assert all(requests[request.request_id] is request for request in (*running, *queue)), "two requests of one id"
    assert list(running) == sorted(running, key=queue.key), "running requests are out of order"
    assert num_in_flight.keys() <= {request.request_id for request in running}, "a request in flight does not run"
    assert queue.num_tokens == sum(request.num_tokens for request in queue), "waiting tokens are miscounted"
    for request in queue:
        assert request.row is None, f"{request.request_id} waits but has a row"
        assert not request.page_ids, f"{request.request_id} waits but holds pages"


def check_rows(running: Sequence[Request], free_rows: Sequence[int], max_num_seqs: int) -> None:
    """Every row is free or belongs to one running request."""
    rows = [request.row for request in running if request.row is not None]
    assert len(rows) == len(running), "a running request has no row"
    assert sorted([*rows, *free_rows]) == list(range(max_num_seqs)), "a row is lost or shared"


def check_tables(running: Sequence[Request], cache: PagedCache, num_in_flight: Mapping[str, int]) -> None:
    """Every table is exactly as long as its computed and scheduled tokens need, and the page counts agree."""
    cache.check(running)
    for request in running:
        num_tokens = request.num_computed_tokens + num_in_flight.get(request.request_id, 0)
        assert num_tokens <= request.num_tokens, f"{request.request_id} computes tokens it does not know"
        num_pages = cache.num_pages_of(num_tokens)
        assert len(request.page_ids) == num_pages, (
            f"{request.request_id} holds {len(request.page_ids)}, not {num_pages}"
        )
