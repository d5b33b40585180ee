"""The plan of the prefill kernel against what has to be done: every query once, every key that it sees."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.mosaic_gpu.prefill_plan import ALIGNMENT, dealt_index, max_items, plan_prefill

NUM_ROWS, NUM_TOKENS = 12, 2048
plan_of = jax.jit(
    partial(plan_prefill, num_tokens=NUM_TOKENS), static_argnames=("query_tile", "key_tile", "sliding_window")
)


@settings(max_examples=150, deadline=None)
@given(
    num_singles=st.integers(0, 5),
    chunks=st.lists(st.tuples(st.integers(2, 300), st.integers(0, 2000)), max_size=6),
    query_tile=st.sampled_from([64, 128]),
    key_tile=st.sampled_from([64, 128]),
    window=st.sampled_from([None, 1, 70, 600]),
)
def test_every_query_and_key_is_reached(
    num_singles: int,
    chunks: list[tuple[int, int]],
    query_tile: int,
    key_tile: int,
    window: int | None,
) -> None:
    query_lens = [1] * num_singles + [n for n, _ in chunks]
    contexts = [9] * num_singles + [n + before for n, before in chunks]
    starts = np.full(NUM_ROWS + 1, sum(query_lens))
    starts[: len(query_lens)] = np.cumsum([0, *query_lens])[:-1]
    plan = plan_of(
        jnp.asarray(contexts + [0] * (NUM_ROWS - len(contexts))),
        jnp.asarray(starts),
        jnp.asarray([num_singles, len(query_lens)]),
        query_tile=query_tile,
        key_tile=key_tile,
        sliding_window=window,
    )
    num_items = int(plan.num_items[0])
    assert num_items <= max_items(NUM_ROWS, NUM_TOKENS, query_tile) == len(plan.items_IJ)
    times = np.zeros(NUM_TOKENS, int)
    lengths: list[int] = []
    for first, start, stop, offset, row, first_tile, masked_tile, num_tiles in np.asarray(plan.items_IJ)[
        :num_items
    ].tolist():
        lengths.append(num_tiles)
        assert first % ALIGNMENT == 0
        queries = range(max(first, start), min(first + query_tile, stop))
        assert len(queries) > 0
        times[queries.start : queries.stop] += 1
        if row == NUM_ROWS:
            assert num_tiles == 0 and start == sum(query_lens)
            continue
        last = queries[-1] + offset
        assert queries[0] + offset == contexts[row] - query_lens[row] + queries[0] - starts[row]
        assert (first_tile + num_tiles) * key_tile > last >= (first_tile + num_tiles - 1) * key_tile
        seen_first = 0 if window is None else max(queries[0] + offset - window + 1, 0)
        assert first_tile * key_tile <= seen_first < (first_tile + 1) * key_tile
        assert first_tile <= masked_tile <= first_tile + num_tiles
        assert masked_tile == first_tile or masked_tile * key_tile - 1 <= queries[0] + offset
    assert (times[:num_singles] == 0).all() and (times[num_singles:] == 1).all()
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize("num_workers", [1, 7, 132])
def test_all_work_is_dealt_out_once(num_workers: int) -> None:
    dealt = np.asarray(dealt_index(jnp.arange(40)[:, None], jnp.arange(num_workers), num_workers))
    for num_pieces in [0, 1, num_workers - 1, num_workers, 5 * num_workers + 3, 39 * num_workers + 1]:
        turns = dealt[: -(-num_pieces // num_workers)]
        assert sorted(turns[turns < num_pieces].tolist()) == list(range(num_pieces))
        # The kernel takes a worker's turns as one range: only the last of them may be missing.
        assert (turns[:-1] < num_pieces).all()
