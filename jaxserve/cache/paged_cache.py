"""`PagedCache`: the page tables of requests, over one `PageAllocator` and one `PrefixCache`.

A request's table, by page index:
    [0, num_published_pages)                 named in the prefix cache, maybe shared: never written again
    [num_published_pages, len(page_ids))     this request's own
"""

from collections import Counter
from collections.abc import Iterable

from jaxserve.cache.page_allocator import PageAllocator
from jaxserve.cache.prefix_cache import PrefixCache
from jaxserve.core.config import CacheConfig
from jaxserve.core.request import Request


class PagedCache:
    """Gives pages to requests, shares those of equal prefixes and takes all back."""

    def __init__(self, config: CacheConfig, *, model: str = "", rope_sensitive_len: int | None = None) -> None:
        self.page_size = config.page_size
        self.pages = PageAllocator(config.num_pages)
        self.prefix = PrefixCache(
            config.page_size,
            model=model,
            rope_sensitive_len=rope_sensitive_len,
            enabled=config.enable_prefix_caching,
        )

    def num_pages_of(self, num_tokens: int) -> int:
        """Pages that num_tokens tokens fill or begin."""
        return -(-num_tokens // self.page_size)

    def fits(self, request: Request, hits: list[int], num_reserved: int) -> bool:
        """Whether all known tokens of a waiting request fit beside num_reserved free pages that others need."""
        num_new = self.num_pages_of(request.num_tokens) - len(hits)
        num_revived = sum(self.pages.count(page_id) == 0 for page_id in hits)
        return num_new + num_revived + num_reserved <= self.pages.num_free

    def open(self, request: Request, hits: list[int]) -> None:
        """Starts a table with pages found by `prefix.lookup`; their tokens need no computing."""
        assert not request.page_ids, f"request {request.request_id} has a table already"
        request.page_ids = [self.pages.acquire(page_id) for page_id in hits]
        request.num_published_pages = len(hits)
        request.num_computed_tokens = len(hits) * self.page_size

    def grow(self, request: Request, num_tokens: int) -> bool:
        """Lengthens the table to num_tokens tokens; False (and nothing changed) if too few pages are free."""
        num_new = self.num_pages_of(num_tokens) - len(request.page_ids)
        if num_new <= 0:
            return True
        if num_new > self.pages.num_free:
            return False
        for _ in range(num_new):
            page_id = self.pages.allocate()
            self.prefix.forget(page_id)
            request.page_ids.append(page_id)
        return True

    def publish(self, request: Request, num_tokens: int) -> None:
        """Names the pages that are full at num_tokens tokens, those of the step being scheduled included.

        Pages are named strictly in order, so every named page's parent is held as long as it is, and is
        evicted after it. Where another page has the name already, the request takes that one in exchange,
        but only for a page of computed tokens: one that this step still writes waits for the next time.
        """
        if not self.prefix.enabled:
            return
        for index in range(request.num_published_pages, num_tokens // self.page_size):
            own, page_hash = request.page_ids[index], self.prefix.page_hash(request, index)
            twin = self.prefix.page_of(page_hash)
            if twin is None:
                self.prefix.register(own, page_hash)
            elif (index + 1) * self.page_size > request.num_computed_tokens:
                return
            else:
                request.page_ids[index] = self.pages.acquire(twin)
                self.pages.release(own, keep=False)
            request.num_published_pages = index + 1

    def close(self, request: Request, *, trusted: bool = True) -> None:
        """Takes all pages back, last first, so that leaves are evicted before their parents.

        Named pages stay findable. trusted=False (the request's values may be wrong): those that nobody
        else holds are forgotten.
        """
        if trusted:
            self.publish(request, request.num_computed_tokens)
        for page_id in reversed(request.page_ids):
            if not trusted and self.pages.count(page_id) == 1:
                self.prefix.forget(page_id)
            self.pages.release(page_id, keep=page_id in self.prefix)
        request.page_ids = []
        request.num_published_pages = 0
        request.num_computed_tokens = 0

    def reset(self) -> bool:
        """Forgets every prefix; False (and nothing changed) while a request holds pages."""
        if self.pages.num_used:
            return False
        self.prefix.reset()
        self.pages.drop_kept()
        return True

    def check(self, requests: Iterable[Request]) -> None:
        """Asserts that counts, names and the tables of all requests agree."""
        self.pages.check()
        self.prefix.check()
        assert all(page_id in self.prefix for page_id in self.pages.kept_pages()), "a kept page has no name"
        holders: Counter[int] = Counter()
        for request in requests:
            assert len(set(request.page_ids)) == len(request.page_ids), f"{request.request_id} holds a page twice"
            assert all(page_id not in self.prefix for page_id in request.page_ids[request.num_published_pages :]), (
                f"{request.request_id} may write a named page"
            )
            holders.update(request.page_ids)
        for page_id in range(self.pages.num_pages):
            count = self.pages.count(page_id)
            assert count == holders[page_id], f"page {page_id}: count {count}, but {holders[page_id]} tables hold it"
