"""`Placement`: which replica of a fleet runs a request. Numbers and hashes only: no process, no clock, no chance.

A request goes where most of its prompt's pages were computed before, unless that replica has many more requests than
the least busy one; else to the one with the fewest tokens. Equal ones are taken in the order of their index.
"""

import hashlib
import secrets
from array import array
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from jaxserve.core.request import Request

NUM_STEPS_AHEAD = 2


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one replica said of itself when it was ready (fields of EngineInfo)."""

    max_num_seqs: int
    max_num_batched_tokens: int
    num_pages: int

    @property
    def max_requests(self) -> int:
        """Its rows, and an eighth more: who leaves is followed at once, without asking the front end."""
        return self.max_num_seqs + max(1, self.max_num_seqs // 8)

    @property
    def max_lead(self) -> int:
        """Requests it may have more than the least busy replica and still be chosen for the pages it knows."""
        return max(2, self.max_num_seqs // 4)


@dataclass(slots=True, eq=False)
class Ticket:
    """One request's place. num_tokens: its prompt and what was generated; num_prefill_tokens: prompt tokens that the
    replica has to compute before the first one, 0 once that is there."""

    replica: int
    num_tokens: int
    num_prefill_tokens: int


@dataclass(slots=True)
class _Replica:
    """Sums over its tickets; known: hashes of pages that it has computed, the least lately used first."""

    capacity: Capacity
    num_requests: int = 0
    num_tokens: int = 0
    num_prefill_tokens: int = 0
    known: OrderedDict[bytes, None] = field(default_factory=OrderedDict[bytes, None])

    @property
    def is_full(self) -> bool:
        """All rows are taken, or the prompts that wait for a first token are the work of its next steps already.

        What a replica cannot begin soon waits better in the shared queue, for whichever has room first.
        """
        capacity = self.capacity
        if self.num_requests >= capacity.max_requests:
            return True
        return self.num_prefill_tokens >= NUM_STEPS_AHEAD * capacity.max_num_batched_tokens

    def num_known(self, hashes: Iterable[bytes]) -> int:
        """Leading pages among those that it knows."""
        count = 0
        for page_hash in hashes:
            if page_hash not in self.known:
                break
            count += 1
        return count

    def learn(self, hashes: list[bytes]) -> None:
        """Remember as many pages as its pool holds. The first pages of a prompt outlive the later ones."""
        for page_hash in reversed(hashes):
            self.known[page_hash] = None
            self.known.move_to_end(page_hash)
        while len(self.known) > self.capacity.num_pages:
            self.known.popitem(last=False)


class Placement:
    """Loads of the replicas that are up, and the pages each has been given.

    page_size: tokens; None where replicas keep no prefix cache: then only loads count.
    """

    def __init__(self, page_size: int | None) -> None:
        self._page_size = page_size
        self._key = secrets.token_bytes(32)  # so that nobody can prepare prompts that look alike
        self._replicas: dict[int, _Replica] = {}
        self._last: tuple[list[int], str | None, list[bytes]] | None = None  # samples of a request share its list

    @property
    def num_rows(self) -> int:
        """Requests that can run together on all that are up."""
        return sum(replica.capacity.max_num_seqs for replica in self._replicas.values())

    @property
    def num_requests(self) -> int:
        """Requests placed and not ended."""
        return sum(replica.num_requests for replica in self._replicas.values())

    def requests_of(self, replica: int) -> int:
        """Requests placed on one replica and not ended; 0 where it is not up."""
        return self._replicas[replica].num_requests if replica in self._replicas else 0

    def open(self, replica: int, capacity: Capacity) -> None:
        """A replica is up; it has nothing and knows nothing."""
        self._replicas[replica] = _Replica(capacity)

    def shut(self, replica: int) -> None:
        """It is gone, with all it knew and all its tickets: none of them may be used any more."""
        self._replicas.pop(replica, None)

    def forget_pages(self) -> None:
        """The replicas' prefix caches were emptied."""
        for replica in self._replicas.values():
            replica.known.clear()

    def place(self, request: Request) -> Ticket | None:
        """Choose a replica and book the request there; None while all are full."""
        hashes = self._hashes(request)
        matches = {i: one.num_known(hashes) for i, one in sorted(self._replicas.items()) if not one.is_full}
        if not matches:
            return None
        chosen = self._choose(matches)
        num_cached = matches[chosen] * (self._page_size or 0)
        ticket = Ticket(chosen, request.num_prompt_tokens, request.num_prompt_tokens - num_cached)
        replica = self._replicas[chosen]
        replica.num_requests += 1
        replica.num_tokens += ticket.num_tokens
        replica.num_prefill_tokens += ticket.num_prefill_tokens
        replica.learn(hashes)
        return ticket

    def note_tokens(self, ticket: Ticket, num_new: int) -> None:
        """The replica has sent tokens of this request."""
        replica = self._replicas[ticket.replica]
        replica.num_prefill_tokens -= ticket.num_prefill_tokens
        ticket.num_prefill_tokens = 0
        replica.num_tokens += num_new
        ticket.num_tokens += num_new

    def end(self, ticket: Ticket) -> None:
        """The replica is done with this request."""
        replica = self._replicas[ticket.replica]
        replica.num_requests -= 1
        replica.num_tokens -= ticket.num_tokens
        replica.num_prefill_tokens -= ticket.num_prefill_tokens

    def _choose(self, matches: dict[int, int]) -> int:
        """matches: pages known by each replica that has room, in the order of their index."""
        fewest = min(replica.num_requests for replica in self._replicas.values())
        best = max(matches.values())

        def leads_too_far(index: int) -> bool:
            replica = self._replicas[index]
            return replica.num_requests - fewest > replica.capacity.max_lead

        knowing = [i for i, count in matches.items() if count == best > 0 and not leads_too_far(i)]
        return min(knowing or matches, key=lambda i: (self._replicas[i].num_tokens, self._replicas[i].num_requests))

    def _hashes(self, request: Request) -> list[bytes]:
        """A hash for each full page of the prompt that a cache could serve; each depends on all pages before it."""
        if self._page_size is None or request.params.skip_reading_prefix_cache:
            return []
        if request.page_hashes:
            return request.page_hashes
        ids, salt = request.prompt_token_ids, request.cache_salt
        if self._last is None or self._last[0] is not ids or self._last[1] != salt:
            self._last = (ids, salt, list(self._chain(ids, salt, self._page_size)))
        request.page_hashes = self._last[2]
        return request.page_hashes

    def _chain(self, ids: list[int], salt: str | None, page_size: int) -> Iterable[bytes]:
        name = repr(salt).encode()
        for end in range(page_size, len(ids), page_size):  # the last token is computed always
            page = array("q", ids[end - page_size : end]).tobytes()
            name = hashlib.blake2b(name + page, digest_size=16, key=self._key).digest()
            yield name
