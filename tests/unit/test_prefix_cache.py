from typing import Any

import pytest

from jaxserve.cache.paged_cache import PagedCache
from jaxserve.cache.prefix_cache import PrefixCache
from jaxserve.core.config import CacheConfig
from jaxserve.core.params import SamplingParams
from jaxserve.core.request import Request


def request_of(prompt: list[int], salt: str | None = None, **params: Any) -> Request:
    return Request("r", prompt, SamplingParams(**params), cache_salt=salt)


def computed(cache: PagedCache, request: Request) -> Request:
    """The request with all its tokens in the pool."""
    cache.open(request, cache.prefix.lookup(request))
    assert cache.grow(request, request.num_tokens)
    cache.publish(request, request.num_tokens)
    request.num_computed_tokens = request.num_tokens
    return request


def small_cache(num_pages: int = 16, rope_sensitive_len: int | None = None, enabled: bool = True) -> PagedCache:
    return PagedCache(CacheConfig(4, num_pages, enabled), rope_sensitive_len=rope_sensitive_len)


def found(cache: PagedCache, request: Request) -> int:
    return len(cache.prefix.lookup(request))


def test_full_pages_of_an_equal_prefix_are_found():
    cache = small_cache()
    first = computed(cache, request_of(list(range(10))))
    assert cache.prefix.lookup(request_of([*range(10), 99])) == first.page_ids[:2]
    assert found(cache, request_of([0, 1, 2, 3, 4, 5, 6, 99, 8, 9])) == 1
    assert found(cache, request_of([99, *range(1, 10)])) == 0


def test_one_token_is_always_left_to_compute():
    cache = small_cache()
    computed(cache, request_of(list(range(8))))
    assert found(cache, request_of(list(range(8)))) == 1
    assert found(cache, request_of(list(range(9)))) == 2
    assert found(cache, request_of([0])) == 0


def test_a_page_is_found_only_behind_its_own_prefix():
    cache = small_cache()
    computed(cache, request_of([1, 1, 1, 1, 2, 2, 2, 2, 3]))
    assert found(cache, request_of([2, 2, 2, 2, 3])) == 0
    assert found(cache, request_of([2, 2, 2, 2, 2, 2, 2, 2, 3])) == 0


def test_output_tokens_share_too():
    cache = small_cache()
    request = request_of([1, 2, 3])
    request.output_token_ids = [4, 5]
    computed(cache, request)
    assert found(cache, request_of([1, 2, 3, 4, 9])) == 1


@pytest.mark.parametrize(("one", "other"), [("a", "b"), ("a", None), ("", None), ("None", None), ("1", "1'")])
def test_salts_part_the_cache(one: str | None, other: str | None):
    cache = small_cache()
    computed(cache, request_of(list(range(9)), one))
    assert found(cache, request_of(list(range(9)), one)) == 2
    assert found(cache, request_of(list(range(9)), other)) == 0


def test_prompts_with_angles_of_their_own_length_share_only_with_that_length():
    cache = small_cache(rope_sensitive_len=8)
    computed(cache, request_of(list(range(9))))
    computed(cache, request_of(list(range(8))))
    assert found(cache, request_of(list(range(10)))) == 0
    assert found(cache, request_of([*range(8), 99])) == 2
    assert found(cache, request_of(list(range(7)))) == 1


def test_names_depend_on_model_adapter_and_process():
    request = [request_of([1, 2, 3, 4]) for _ in range(4)]
    caches = [
        PrefixCache(4, model="a"),
        PrefixCache(4, model="b"),
        PrefixCache(4, adapter="a"),
        PrefixCache(4, model="a"),
    ]
    names = {cache.page_hash(one, 0) for cache, one in zip(caches, request, strict=True)}
    assert len(names) == 4
    assert all(len(name) * 8 >= 128 for name in names)


def test_who_must_compute_every_token_reads_nothing_but_writes():
    cache = small_cache()
    computed(cache, request_of(list(range(9)), skip_reading_prefix_cache=True))
    assert found(cache, request_of(list(range(9)), skip_reading_prefix_cache=True)) == 0
    scored = request_of(list(range(9)), prompt_logprobs=0, skip_reading_prefix_cache=False)
    assert found(cache, scored) == 0
    scored.num_prompt_logprobs_sent = 8
    assert found(cache, scored) == 2, "after their delivery a recompute may read"


def test_disabled_means_no_names_at_all():
    cache = small_cache(enabled=False)
    request = computed(cache, request_of(list(range(9))))
    cache.close(request)
    assert (found(cache, request_of(list(range(9)))), len(cache.prefix), cache.pages.num_kept) == (0, 0, 0)


def test_counters_are_in_tokens():
    cache = small_cache()
    cache.prefix.count(request_of(list(range(9))), 8)
    cache.prefix.count(request_of(list(range(5)), skip_reading_prefix_cache=True), 0)
    assert (cache.prefix.num_queries, cache.prefix.num_hits) == (9, 8)


def test_leaves_are_evicted_before_parents_and_old_before_new():
    cache = small_cache(4)
    old, new = computed(cache, request_of([1] * 8)), computed(cache, request_of([2] * 8))
    old_pages, new_pages = old.page_ids.copy(), new.page_ids.copy()
    cache.close(old)
    cache.close(new)
    assert cache.pages.kept_pages() == [*reversed(old_pages), *reversed(new_pages)]
    other = request_of([3] * 4)
    assert cache.grow(other, 4)
    assert found(cache, request_of([1] * 9)) == 1
    assert found(cache, request_of([2] * 9)) == 2


def test_a_twin_is_exchanged_once_it_is_computed():
    cache = small_cache()
    one = computed(cache, request_of(list(range(8))))
    two = request_of(list(range(8)))
    cache.open(two, cache.prefix.lookup(two))
    assert cache.grow(two, 8)
    cache.publish(two, 8)
    assert two.page_ids[0] == one.page_ids[0]
    assert two.page_ids[1] != one.page_ids[1], "this step writes the page: it may not be the shared one"
    cache.check([one, two])
    two.num_computed_tokens = 8
    num_free = cache.pages.num_free
    cache.publish(two, 8)
    assert two.page_ids == one.page_ids
    assert cache.pages.num_free == num_free + 1
    cache.check([one, two])


def test_what_a_failed_request_computed_is_forgotten_but_not_what_others_hold():
    cache = small_cache()
    good = computed(cache, request_of(list(range(4))))
    bad = computed(cache, request_of(list(range(13))))
    cache.close(bad, trusted=False)
    assert found(cache, request_of(list(range(13)))) == 1
    cache.check([good])


def test_a_reused_page_loses_its_name():
    cache = small_cache(2)
    cache.close(computed(cache, request_of(list(range(8)))))
    other = request_of([7] * 8)
    assert cache.grow(other, 8)
    assert len(cache.prefix) == 0
    assert not cache.grow(other, 9), "the pool is exhausted"
    assert len(other.page_ids) == 2


def test_fits_counts_hits_that_nobody_holds_and_pages_others_need():
    cache = small_cache(4)
    cache.close(computed(cache, request_of(list(range(8)))))
    request = request_of(list(range(12)))
    hits = cache.prefix.lookup(request)
    assert len(hits) == 2
    assert cache.fits(request, hits, 1)
    assert not cache.fits(request, hits, 2)


def test_reset_waits_for_everybody():
    cache = small_cache()
    request = computed(cache, request_of(list(range(9))))
    assert not cache.reset()
    assert found(cache, request_of(list(range(9)))) == 2
    cache.close(request)
    assert cache.reset()
    assert (found(cache, request_of(list(range(9)))), cache.pages.num_kept) == (0, 0)
    cache.check([])
