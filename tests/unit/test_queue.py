import random

import pytest

from jaxserve.core.params import SamplingParams
from jaxserve.core.request import Request
from jaxserve.schedule.queue import WaitingQueue


def request_of(order: int, priority: int = 0) -> Request:
    return Request(f"r{order}", [1] * (order % 5 + 1), SamplingParams(), priority=priority, arrival_order=order)


def order_of(queue: WaitingQueue) -> list[int]:
    return [queue.pop().arrival_order for _ in range(len(queue))]


def test_first_come_first_served_ignores_priority():
    queue = WaitingQueue("fcfs")
    for order, priority in ((1, 5), (2, 0), (3, -5)):
        queue.push(request_of(order, priority))
    assert order_of(queue) == [1, 2, 3]


def test_priority_goes_first_and_arrival_decides_among_equals():
    queue = WaitingQueue("priority")
    for order, priority in ((1, 5), (2, 0), (3, -5), (4, 0)):
        queue.push(request_of(order, priority))
    assert order_of(queue) == [3, 2, 4, 1]


def test_who_comes_back_stands_in_front_of_who_came_later():
    queue = WaitingQueue("fcfs")
    requests = [request_of(order) for order in range(4)]
    for request in requests[2:]:
        queue.push(request)
    for request in reversed(requests[:2]):
        queue.push(request)
    assert order_of(queue) == [0, 1, 2, 3]


def test_removed_requests_are_gone_and_counted_out():
    queue = WaitingQueue("fcfs")
    for order in range(3):
        queue.push(request_of(order))
    removed = queue.remove("r0")
    assert removed is not None
    assert removed.arrival_order == 0
    assert queue.remove("r0") is None
    assert ("r0" in queue, "r1" in queue, len(queue)) == (False, True, 2)
    assert queue.num_tokens == sum(request.num_tokens for request in queue) == 5
    assert order_of(queue) == [1, 2]


def test_the_same_id_may_come_again():
    queue = WaitingQueue("fcfs")
    queue.push(request_of(1))
    queue.remove("r1")
    again = Request("r1", [1], SamplingParams(), arrival_order=2)
    queue.push(again)
    assert queue.peek() is again
    assert len(queue) == 1


def test_empty_queue():
    with pytest.raises(IndexError):
        WaitingQueue("fcfs").peek()


def test_random_use_against_a_sorted_list():
    rng, queue, plain = random.Random(0), WaitingQueue("priority"), list[Request]()
    for order in range(4000):
        queue.push(request_of(order, rng.randrange(4)))
        plain.append(next(request for request in queue if request.arrival_order == order))
        while plain and rng.random() < 0.49:
            plain.sort(key=queue.key)
            if rng.random() < 0.3:
                assert queue.pop() is plain.pop(0)
            else:
                victim = plain.pop(rng.randrange(len(plain)))
                assert queue.remove(victim.request_id) is victim
        assert len(queue) == len(plain)
    assert queue.num_tokens == sum(request.num_tokens for request in plain)
    assert order_of(queue) == [request.arrival_order for request in sorted(plain, key=queue.key)]


def test_aborted_requests_do_not_pile_up_behind_a_waiting_head():
    queue = WaitingQueue("fcfs")
    queue.push(request_of(0))
    for order in range(1, 1000):
        queue.push(request_of(order))
        queue.remove(f"r{order}")
    assert len(queue._heap) < 100  # pyright: ignore[reportPrivateUsage]
    assert queue.pop().arrival_order == 0
