"""`PrefixCache`: which page of the pool holds the keys and values of which token prefix.

The name of a full page is a hash of everything its contents depend on: all tokens up to its end,
model, adapter, salt and, where rotary angles depend on it, the prompt's length. The hash is keyed
with a secret of this process, so nobody can prepare two prompts of the same name.
"""

import hashlib
import secrets
from array import array

from jaxserve.core.request import Request


class PrefixCache:
    """A one-to-one map of page hashes and page ids. Knows nothing of who holds the pages.

    rope_sensitive_len: prompts longer than this (tokens) get rotary angles that depend on their
        length, so only prompts of the same length share pages; None where they never do.
    num_queries, num_hits: tokens looked up and tokens found, totals since the start.
    """

    def __init__(
        self,
        page_size: int,
        *,
        model: str = "",
        adapter: str = "",
        rope_sensitive_len: int | None = None,
        enabled: bool = True,
    ) -> None:
        self.page_size = page_size
        self.enabled = enabled
        self.num_queries = 0
        self.num_hits = 0
        self._key = secrets.token_bytes(32)
        self._names = (model, adapter)
        self._rope_sensitive_len = rope_sensitive_len
        self._page_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._hash_of)

    def __contains__(self, page_id: int) -> bool:
        return page_id in self._hash_of

    def page_hash(self, request: Request, index: int) -> bytes:
        """Hash of the request's page `index`, all of whose tokens are known. Kept in request.page_hashes."""
        hashes, size = request.page_hashes, self.page_size
        while len(hashes) <= index:
            start = len(hashes) * size
            parent = hashes[-1] if hashes else self._seed(request)
            hashes.append(self._digest(parent + array("q", request.tokens(start, start + size)).tobytes()))
        return hashes[index]

    def lookup(self, request: Request) -> list[int]:
        """Pages that hold the request's longest known prefix, in order of position.

        At least one token is left over to compute, so its full last page is never among them.
        Empty where the request must not read the cache: its prompt's log probabilities need every
        position computed (until they were delivered), or it says so.
        """
        if not self.enabled or not self._may_read(request):
            return []
        page_ids: list[int] = []
        for index in range((request.num_tokens - 1) // self.page_size):
            page_id = self._page_of.get(self.page_hash(request, index))
            if page_id is None:
                break
            page_ids.append(page_id)
        return page_ids

    def count(self, request: Request, num_hits: int) -> None:
        """Counts one look-up of an admitted request that found num_hits tokens."""
        if self.enabled and self._may_read(request):
            self.num_queries += request.num_tokens
            self.num_hits += num_hits

    def page_of(self, page_hash: bytes) -> int | None:
        return self._page_of.get(page_hash)

    def register(self, page_id: int, page_hash: bytes) -> None:
        """The page holds (or will, once the step now being scheduled has run) what the hash names."""
        assert page_id not in self._hash_of, f"page {page_id} has a name already"
        assert page_hash not in self._page_of, f"page {self._page_of[page_hash]} has page {page_id}'s name already"
        self._page_of[page_hash] = page_id
        self._hash_of[page_id] = page_hash

    def forget(self, page_id: int) -> None:
        """The page's contents are about to change or not to be trusted. Nothing happens if it is unknown."""
        page_hash = self._hash_of.pop(page_id, None)
        if page_hash is not None:
            del self._page_of[page_hash]

    def reset(self) -> None:
        """Forgets every page; the counters go on."""
        self._page_of.clear()
        self._hash_of.clear()

    def check(self) -> None:
        """Asserts that hashes and pages are one to one."""
        inverse = {page_id: page_hash for page_hash, page_id in self._page_of.items()}
        assert inverse == self._hash_of, "hashes and pages disagree"
        assert len(inverse) == len(self._page_of), "two hashes name one page"

    def _may_read(self, request: Request) -> bool:
        if request.params.skip_reading_prefix_cache:
            return False
        num_wanted = 0 if request.params.prompt_logprobs is None else request.num_prompt_tokens - 1
        return request.num_prompt_logprobs_sent >= num_wanted

    def _seed(self, request: Request) -> bytes:
        limit, num_prompt = self._rope_sensitive_len, request.num_prompt_tokens
        rope_len = num_prompt if limit is not None and num_prompt > limit else None
        return self._digest(repr((*self._names, request.cache_salt, rope_len)).encode())

    def _digest(self, data: bytes) -> bytes:
        return hashlib.blake2b(data, digest_size=32, key=self._key).digest()
