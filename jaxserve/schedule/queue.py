"""`WaitingQueue`: requests that hold no pages, in the order in which they will be admitted."""

import heapq
from collections.abc import Iterator

from jaxserve.core.request import Request


class WaitingQueue:
    """A heap by (priority, arrival), or by arrival alone under policy "fcfs".

    Arrival is the order in which requests were first added, so a preempted one comes back in
    front of everybody who came later. num_tokens: known tokens of all that wait.
    """

    def __init__(self, policy: str) -> None:
        self.num_tokens = 0
        self._by_priority = policy == "priority"
        self._heap: list[tuple[int, int, Request]] = []
        self._waiting: dict[str, Request] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Request]:
        """All that wait, in no particular order."""
        return iter(self._waiting.values())

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._waiting

    def key(self, request: Request) -> tuple[int, int]:
        """Place of a request among all, waiting or running: smaller goes first and is preempted last."""
        return (request.priority if self._by_priority else 0, request.arrival_order)

    def push(self, request: Request) -> None:
        self._waiting[request.request_id] = request
        self.num_tokens += request.num_tokens
        heapq.heappush(self._heap, (*self.key(request), request))

    def peek(self) -> Request:
        """The next request. Raises IndexError if none waits."""
        while self._waiting.get(self._heap[0][2].request_id) is not self._heap[0][2]:
            heapq.heappop(self._heap)  # removed since
        return self._heap[0][2]

    def pop(self) -> Request:
        """Takes the next request out. Raises IndexError if none waits."""
        request = self.peek()
        heapq.heappop(self._heap)
        self._drop(request)
        return request

    def remove(self, request_id: str) -> Request | None:
        """Takes one request out, None if it does not wait. Its heap entry is skipped (or swept out) later."""
        request = self._waiting.get(request_id)
        if request is not None:
            self._drop(request)
            if len(self._heap) > 2 * len(self._waiting) + 64:
                self._heap = [(*self.key(other), other) for other in self]
                heapq.heapify(self._heap)
        return request

    def _drop(self, request: Request) -> None:
        del self._waiting[request.request_id]
        self.num_tokens -= request.num_tokens
