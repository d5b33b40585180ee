"""The plan of the decode kernel, walked through as the kernel does, against what has to be done."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.plan import plan_decode, plan_first_tiles

TILE = 64


@settings(max_examples=150, deadline=None)
@given(
    lens=st.lists(st.one_of(st.integers(1, 200), st.integers(1, 5000)), max_size=12),
    num_padding=st.integers(0, 5),
    num_heads=st.sampled_from([1, 2, 8]),
    num_workers=st.sampled_from([1, 3, 33, 264]),
    window=st.one_of(st.none(), st.integers(1, 600)),
)
def test_every_tile_is_done_once_and_every_part_merged(
    lens: list[int], num_padding: int, num_heads: int, num_workers: int, window: int | None
) -> None:
    num_padding += not lens  # a step has rows, if only padding
    lens = lens + [0] * num_padding
    plan = np.asarray(
        plan_decode(
            jnp.asarray(lens, jnp.int32), num_heads=num_heads, tile=TILE, sliding_window=window, num_workers=num_workers
        )
    ).tolist()
    first = [max(n - window, 0) // TILE if window else 0 for n in lens]
    tiles = [-(-n // TILE) - skipped for n, skipped in zip(lens, first, strict=True)]
    total = num_heads * sum(tiles)
    done: list[tuple[int, int, int]] = []
    parts: dict[tuple[int, bool], tuple[int, int, int, int]] = {}
    heads: dict[tuple[int, int], set[int]] = {}
    for worker, (row, head, tile, count, segments, used, *_) in enumerate(plan):
        assert used == len(lens) - num_padding
        assert count <= total // min(num_workers, max(total, 1)) + 1  # evenly shared
        left = count
        for _ in range(segments):
            here = min(tiles[row] - tile, left)
            done += [(row, head, t) for t in range(tile, tile + here)]
            if here < tiles[row]:
                line = worker + (tile == 0)
                heads.setdefault((row, head), set()).add(line)
                parts[worker, tile == 0] = (row, head, tile, here)
            left, tile = left - here, tile + here
            if tile == tiles[row]:
                tile, head = 0, head + 1
            if head == num_heads:
                head, row = 0, row + 1
        assert left == 0
    assert done == [(b, h, t) for b in range(len(lens)) for h in range(num_heads) for t in range(tiles[b])]

    merged: list[tuple[int, bool]] = []
    leaders: list[int] = []
    for (row, head), lines in heads.items():
        # Every part's line says the same: whichever part is the last one left, the head is merged from all.
        ((leader, following),) = {tuple(plan[line][6:]) for line in lines}
        indices = [(leader, True), *((leader + i, False) for i in range(1, following + 1))]
        end = 0
        for index in indices:
            assert parts[index][:3] == (row, head, end)
            end += parts[index][3]
        assert end == tiles[row]
        merged += indices
        leaders.append(leader)
        assert plan[leader + 1][:2] == [row, head]
    assert sorted(merged) == sorted(parts)
    assert len(set(leaders)) == len(leaders)  # a counter a head
    # Where another kernel merges, a head's second worker is known by its line alone.
    seconds = [w for w, (*_, segments, _, leader, _) in enumerate(plan) if segments > 0 and leader == w - 1]
    assert seconds == sorted(leader + 1 for leader in leaders)


@settings(max_examples=40, deadline=None)
@given(
    lens=st.lists(st.one_of(st.integers(1, 200), st.integers(1, 3000)), min_size=1, max_size=8),
    num_padding=st.integers(0, 3),
    num_heads=st.sampled_from([1, 2, 8]),
    num_workers=st.sampled_from([1, 3, 33, 264]),
    window=st.one_of(st.none(), st.integers(1, 600)),
    page_size=st.sampled_from([16, 32, 64, 128]),
    num_tiles=st.sampled_from([1, 2, 4]),
)
def test_a_workers_first_tiles_are_those_of_its_line(
    lens: list[int],
    num_padding: int,
    num_heads: int,
    num_workers: int,
    window: int | None,
    page_size: int,
    num_tiles: int,
) -> None:
    lens_B = jnp.asarray(lens + [0] * num_padding, jnp.int32)
    table = np.random.default_rng(len(lens)).permutation(len(lens_B) * 200).reshape(len(lens_B), 200)[:, :192]
    cut: dict[str, Any] = dict(num_heads=num_heads, tile=TILE, sliding_window=window, num_workers=num_workers)
    plan = np.asarray(plan_decode(lens_B, **cut)).tolist()
    first = plan_first_tiles(
        lens_B, jnp.asarray(table), page_size=page_size, num_pages=1 << 30, num_tiles=num_tiles, **cut
    )
    line: list[tuple[int, int, int, int]] = []  # row, head, tile of those seen, tile of the row
    for row, length in enumerate(lens):
        skipped = max(length - window, 0) // TILE if window else 0
        tiles = -(-length // TILE) - skipped
        line += [(row, head, tile, skipped + tile) for head in range(num_heads) for tile in range(tiles)]
    num_parts = max(1, TILE // page_size)
    at = 0
    for (*_, count, _, _, _, _), numbers in zip(plan, np.asarray(first).tolist(), strict=True):
        for number in range(min(num_tiles, count)):
            row, head, _, tile = line[at + number]
            columns = [tile * TILE // page_size + part for part in range(num_parts)]
            size = 2 + num_parts
            assert numbers[number * size : (number + 1) * size] == [head, tile, *table[row, columns]]
        if count > num_tiles:
            assert tuple(numbers[-3:]) == line[at + num_tiles][:3]
        at += count
    assert at == len(line)


def test_first_tiles_of_nothing_stay_within_pool_and_table() -> None:
    first = plan_first_tiles(
        jnp.zeros(3, jnp.int32),
        jnp.full((3, 4), 10**6, jnp.int32),
        num_heads=2,
        tile=TILE,
        sliding_window=None,
        num_workers=5,
        page_size=16,
        num_pages=7,
        num_tiles=2,
    )
    assert first.shape == (5, 2 * 6 + 3)
    assert int(first.min()) >= 0 and int(first.max()) <= 6
