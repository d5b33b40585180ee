"""`PageAllocator`: who holds which page of the KV pool, by reference count."""

from collections import OrderedDict


class PageAllocator:
    """Counts the holders of each page and orders the free ones for reuse. Every operation is O(1).

    A page is held (count >= 1), blank (count 0, contents worthless) or kept (count 0, contents worth
    finding again: whoever remembers what is in it may `acquire` it back). `allocate` takes blank pages
    first, then the kept page that was released longest ago.
    """

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._counts = [0] * num_pages
        self._blank: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_pages))
        self._kept: OrderedDict[int, None] = OrderedDict()

    @property
    def num_free(self) -> int:
        """Pages without a holder, blank or kept."""
        return len(self._blank) + len(self._kept)

    @property
    def num_kept(self) -> int:
        return len(self._kept)

    @property
    def num_used(self) -> int:
        return self.num_pages - self.num_free

    def count(self, page_id: int) -> int:
        """Holders of the page."""
        return self._counts[page_id]

    def allocate(self) -> int:
        """A free page, now with one holder. What it contained is the caller's to forget.

        Raises IndexError if every page is held.
        """
        free = self._blank or self._kept
        if not free:
            raise IndexError(f"all {self.num_pages} pages are held")
        page_id, _ = free.popitem(last=False)
        self._counts[page_id] = 1
        return page_id

    def acquire(self, page_id: int) -> int:
        """One holder more, of a held or a kept page. Returns page_id; raises KeyError if it is blank."""
        if self._counts[page_id] == 0:
            del self._kept[page_id]
        self._counts[page_id] += 1
        return page_id

    def release(self, page_id: int, *, keep: bool) -> None:
        """One holder less; keep says what becomes of the page if that was the last.

        Raises ValueError if nobody holds it.
        """
        if self._counts[page_id] <= 0:
            raise ValueError(f"page {page_id} is released but nobody holds it")
        self._counts[page_id] -= 1
        if self._counts[page_id] == 0:
            (self._kept if keep else self._blank)[page_id] = None

    def drop_kept(self) -> None:
        """Makes every kept page blank."""
        self._blank.update(self._kept)
        self._kept.clear()

    def kept_pages(self) -> list[int]:
        """Kept pages in the order in which they would be reused."""
        return list(self._kept)

    def check(self) -> None:
        """Asserts that every page is held, blank or kept, and only one of them."""
        assert min(self._counts) >= 0, "a page has a negative count"
        free = [*self._blank, *self._kept]
        unheld = [page_id for page_id, count in enumerate(self._counts) if count == 0]
        assert sorted(free) == unheld, f"free pages {sorted(free)}, but those without a holder are {unheld}"
