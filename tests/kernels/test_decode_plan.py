"""The plan of the decode kernel, walked through as the kernel does, against what has to be done."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.plan import plan_decode

TILE = 64


@settings(max_examples=150, deadline=None)
@given(
    lens=st.lists(st.one_of(st.integers(1, 200), st.integers(1, 5000)), min_size=1, max_size=12),
    num_padding=st.integers(0, 5),
    num_heads=st.sampled_from([1, 2, 8]),
    num_workers=st.sampled_from([1, 3, 33, 264]),
    window=st.one_of(st.none(), st.integers(1, 600)),
)
def test_every_tile_is_done_once_and_every_part_merged(
    lens: list[int], num_padding: int, num_heads: int, num_workers: int, window: int | None
) -> None:
    lens = lens + [0] * num_padding
    plan = plan_decode(
        jnp.asarray(lens, jnp.int32), num_heads=num_heads, tile=TILE, sliding_window=window, num_workers=num_workers
    )
    first = [max(n - window, 0) // TILE if window else 0 for n in lens]
    tiles = [-(-n // TILE) - skipped for n, skipped in zip(lens, first, strict=True)]
    total = num_heads * sum(tiles)
    done: list[tuple[int, int, int]] = []
    parts: dict[int, tuple[int, int, int, int]] = {}
    for worker, (row, head, tile, count, segments) in enumerate(np.asarray(plan.work_WI).tolist()):
        assert count <= total // min(num_workers, max(total, 1)) + 1  # evenly shared
        left = count
        for segment in range(segments):
            here = min(tiles[row] - tile, left)
            done += [(row, head, t) for t in range(tile, tile + here)]
            if here < tiles[row]:
                parts[2 * worker + min(segment, 1)] = (row, head, tile, here)
            left, tile = left - here, tile + here
            if tile == tiles[row]:
                tile, head = 0, head + 1
            if head == num_heads:
                head, row = 0, row + 1
        assert left == 0
    assert done == [(b, h, t) for b in range(len(lens)) for h in range(num_heads) for t in range(tiles[b])]

    merged: list[int] = []
    for worker, (leads, second, following, row, head) in enumerate(np.asarray(plan.merge_WI).tolist()):
        if not leads:
            continue
        indices = [2 * worker + second, *(2 * (worker + i) for i in range(1, following + 1))]
        end = 0
        for index in indices:
            assert parts[index][:3] == (row, head, end)
            end += parts[index][3]
        assert end == tiles[row]
        merged += indices
    assert sorted(merged) == sorted(parts)
