import random

import pytest

from jaxserve.cache.page_allocator import PageAllocator


def test_pages_are_handed_out_once_and_come_back():
    pages = PageAllocator(3)
    assert sorted(pages.allocate() for _ in range(3)) == [0, 1, 2]
    assert (pages.num_free, pages.num_used) == (0, 3)
    with pytest.raises(IndexError, match="all 3 pages"):
        pages.allocate()
    pages.release(1, keep=False)
    assert pages.allocate() == 1


def test_a_shared_page_is_free_only_after_its_last_holder():
    pages = PageAllocator(2)
    page_id = pages.allocate()
    assert pages.acquire(page_id) == page_id
    pages.release(page_id, keep=True)
    assert (pages.count(page_id), pages.num_kept) == (1, 0)
    pages.release(page_id, keep=True)
    assert (pages.count(page_id), pages.num_kept, pages.num_free) == (0, 1, 2)


def test_double_release_is_refused():
    pages = PageAllocator(1)
    page_id = pages.allocate()
    pages.release(page_id, keep=False)
    with pytest.raises(ValueError, match="nobody holds"):
        pages.release(page_id, keep=False)
    pages.check()


def test_kept_pages_are_reused_last_and_oldest_first():
    pages = PageAllocator(4)
    for _ in range(3):
        pages.allocate()
    for page_id in (1, 0, 2):
        pages.release(page_id, keep=page_id != 0)
    assert [pages.allocate() for _ in range(4)] == [3, 0, 1, 2]


def test_a_hit_makes_a_kept_page_the_newest():
    pages = PageAllocator(2)
    for page_id in (pages.allocate(), pages.allocate()):
        pages.release(page_id, keep=True)
    pages.release(pages.acquire(0), keep=True)
    assert pages.kept_pages() == [1, 0]


def test_a_blank_page_cannot_be_acquired():
    pages = PageAllocator(2)
    with pytest.raises(KeyError):
        pages.acquire(0)
    pages.check()


def test_dropped_pages_are_blank():
    pages = PageAllocator(2)
    pages.release(pages.allocate(), keep=True)
    pages.drop_kept()
    assert (pages.num_kept, pages.num_free) == (0, 2)
    pages.check()


def test_check_sees_a_lost_page():
    pages = PageAllocator(2)
    pages.allocate()
    pages._counts[0] = 0  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(AssertionError, match="without a holder"):
        pages.check()


def test_random_use_against_plain_lists():
    rng, pages = random.Random(0), PageAllocator(8)
    counts, blank, kept = [0] * 8, list(range(8)), list[int]()
    for _ in range(5000):
        held = [page_id for page_id in range(8) if counts[page_id]]
        action = rng.choice(["allocate", "acquire", "release", "release"])
        if action == "allocate" and blank + kept:
            page_id = (blank or kept).pop(0)
            counts[page_id] = 1
            assert pages.allocate() == page_id
        elif action == "acquire" and held + kept:
            page_id = rng.choice(held + kept)
            counts[page_id] += 1
            if page_id in kept:
                kept.remove(page_id)
            pages.acquire(page_id)
        elif action == "release" and held:
            page_id, keep = rng.choice(held), rng.random() < 0.5
            counts[page_id] -= 1
            if counts[page_id] == 0:
                (kept if keep else blank).append(page_id)
            pages.release(page_id, keep=keep)
        pages.check()
        assert (pages.kept_pages(), pages.num_free) == (kept, len(blank) + len(kept))
        assert [pages.count(page_id) for page_id in range(8)] == counts
