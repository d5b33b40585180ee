"""The plan of the decode kernel, walked through as the kernel does, against what has to be done."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.plan import plan_decode

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
