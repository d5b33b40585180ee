"""Who does what with a step's prompt chunks: tiles of queries, longest first, dealt out to workers.

A query tile is a run of the packed queries that begins at a multiple of 8 (what a TMA copy of a
swizzled tile asks for), so a row's first tile may begin with queries of the row before and its last one
end with those of the row after; they are worked out like the others and not stored.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

ALIGNMENT = 8  # queries


class PrefillItem(NamedTuple):
    """A query tile.

    first: its first packed query; start, stop: its row's first query and the one after its last; offset: what
    to add to a packed index for the position; row; first_tile: of keys; masked_tile: the first that reaches
    past the tile's first query, the window apart; num_tiles: of keys.
    """

    first: Array
    start: Array
    stop: Array
    offset: Array
    row: Array
    first_tile: Array
    masked_tile: Array
    num_tiles: Array


class PrefillPlan(NamedTuple):
    """Made once a step from the lengths alone, the same for every layer.

    items_IJ: a `PrefillItem` a line, longest first; num_items: how many lines are real, as an array of one.
    """

    items_IJ: Int[Array, "I 8"]
    num_items: Int[Array, " 1"]


def plan_prefill(
    context_lens_B: Int[Array, " B"],
    query_starts: Int[Array, " B+1"],
    row_counts: Int[Array, " 2"],
    *,
    num_tokens: int,
    query_tile: int,
    key_tile: int,
    sliding_window: int | None,
) -> PrefillPlan:
    """query_tile: packed queries of one item; key_tile: keys of one of its steps. See `ragged_paged_attention`.

    The queries after all rows' are one more row, without keys: its outputs are 0.
    """
    num_rows = context_lens_B.shape[0]
    rows_R = jnp.arange(num_rows + 1)
    starts_R = query_starts
    stops_R = jnp.append(query_starts[1:], num_tokens)
    aligned_R = starts_R // ALIGNMENT * ALIGNMENT
    is_chunk_R = (rows_R >= row_counts[0]) & ((rows_R < row_counts[1]) | (rows_R == num_rows)) & (stops_R > starts_R)
    tiles_R = jnp.where(is_chunk_R, (stops_R - aligned_R + query_tile - 1) // query_tile, 0)
    ends_R = jnp.cumsum(tiles_R)

    items_I = jnp.arange(max_items(num_rows, num_tokens, query_tile))
    row_I = jnp.minimum(jnp.searchsorted(ends_R, items_I, side="right", method="compare_all"), num_rows)
    first_I = aligned_R[row_I] + query_tile * (items_I - ends_R[row_I] + tiles_R[row_I])
    start_I, stop_I = starts_R[row_I], stops_R[row_I]
    offset_I = jnp.append(context_lens_B, 0)[row_I] - stop_I
    first_position_I = jnp.maximum(first_I, start_I) + offset_I
    key_end_I = jnp.minimum(first_I + query_tile, stop_I) + offset_I
    key_start_I = 0 * first_I if sliding_window is None else jnp.maximum(first_position_I - sliding_window + 1, 0)
    first_tile_I = key_start_I // key_tile
    num_tiles_I = jnp.where(row_I < num_rows, (key_end_I + key_tile - 1) // key_tile - first_tile_I, 0)
    # Keys of a tile before this one are all seen by all of the item's queries, the window apart.
    masked_tile_I = jnp.clip((first_position_I + 1) // key_tile, first_tile_I, first_tile_I + num_tiles_I)
    is_item_I = items_I < ends_R[-1]
    items_IJ = jnp.stack([first_I, start_I, stop_I, offset_I, row_I, first_tile_I, masked_tile_I, num_tiles_I], axis=-1)
    order_I = _longest_first(jnp.where(is_item_I, num_tiles_I, -1))
    return PrefillPlan(items_IJ[order_I].astype(jnp.int32), ends_R[-1:].astype(jnp.int32))


def _longest_first(lengths_I: Int[Array, " I"]) -> Int[Array, " I"]:
    """A stable argsort by counting: on a GPU XLA has a library sort, which a command buffer cannot hold."""
    items_I = jnp.arange(len(lengths_I))
    is_before_IJ = lengths_I[None] > lengths_I[:, None]
    is_before_IJ |= (lengths_I[None] == lengths_I[:, None]) & (items_I[None] < items_I[:, None])
    return jnp.zeros_like(items_I).at[is_before_IJ.sum(-1)].set(items_I, unique_indices=True)


def max_items(num_rows: int, num_tokens: int, query_tile: int) -> int:
    """The most query tiles that so many rows of two queries or more, and the padding, can have."""
    num_chunks = min(num_rows, num_tokens // 2) + 1
    return num_chunks + (num_tokens + (ALIGNMENT - 2) * num_chunks) // query_tile


def dealt_index(turn: Array, worker: Array, num_workers: int) -> Array:
    """Which of all pieces of work, longest first, a worker takes as its turn-th: dealt out to and fro, so
    that who got one of the longest of a round gets one of the shortest of the next."""
    return turn * num_workers + jnp.where(turn % 2 == 0, worker, num_workers - 1 - worker)
