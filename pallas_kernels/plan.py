"""Who does what: a step's decode work cut into equal runs of key tiles, one run a worker.

The tiles of all rows and KV heads lie in one line: row 0 head 0, row 0 head 1, …, each head's tiles
in order. Worker w takes tiles [starts[w], starts[w + 1]). Short rows cost nothing, one long row is
spread over the whole device, and no worker does more than one tile above the mean.

A stretch of one head's tiles within a run is a segment. Only a worker's first segment can begin
inside a head's tiles and only its last can end inside, so a worker leaves at most two partial results.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int


class DecodePlan(NamedTuple):
    """Made once a step from the context lengths alone, the same for every layer.

    work_WI: of each worker the row, head and tile (of that head) it begins with, its number of tiles
    and of segments.
    merge_WI: of each worker whether its last segment begins a head that later workers go on with (0 or
    1), which of its two partial results holds it, the number of workers that go on, row and head.
    """

    work_WI: Int[Array, "W 5"]
    merge_WI: Int[Array, "W 5"]


def tile_range(context_len: Array, tile: int, sliding_window: int | None) -> tuple[Array, Array]:
    """The first tile of keys that a row's single query sees, and how many."""
    first = 0 * context_len if sliding_window is None else jnp.maximum(context_len - sliding_window, 0) // tile
    return first, (context_len + tile - 1) // tile - first


def plan_decode(
    context_lens_B: Int[Array, " B"], *, num_heads: int, tile: int, sliding_window: int | None, num_workers: int
) -> DecodePlan:
    """context_lens_B: 0 for rows without a query, all of which come after those with one. num_heads: KV heads."""
    num_rows = context_lens_B.shape[0]
    tiles_B = tile_range(context_lens_B, tile, sliding_window)[1]
    ends_B = num_heads * jnp.cumsum(tiles_B)
    total = ends_B[-1]
    workers = jnp.arange(num_workers + 1)
    num_active = jnp.clip(total, 1, num_workers)
    starts = jnp.minimum(workers, num_active) * total // num_active

    rows = jnp.minimum(jnp.searchsorted(ends_B, starts, side="right", method="compare_all"), num_rows - 1)
    row_tiles = jnp.maximum(tiles_B[rows], 1)
    within = starts - (ends_B[rows] - num_heads * tiles_B[rows])
    heads, tiles = within // row_tiles, within % row_tiles
    row_heads = rows * num_heads + heads
    head_starts = starts - tiles
    counts = jnp.diff(starts)
    # A worker ends inside a head's tiles where the next one does not begin with a head's first tile.
    ends_inside = (tiles[1:] > 0) & (starts[1:] < total)
    num_segments = row_heads[1:] - row_heads[:-1] + ends_inside
    num_segments = jnp.where(starts[1:] < total, num_segments, _last_segments(rows, heads, num_heads, tiles_B))
    work_WI = jnp.stack([rows[:-1], heads[:-1], tiles[:-1], counts, jnp.where(counts > 0, num_segments, 0)], axis=-1)

    leads = ends_inside & (head_starts[1:] >= starts[:-1]) & (counts > 0)
    last_workers = jnp.searchsorted(starts, head_starts[1:] + row_tiles[1:], side="left", method="compare_all") - 1
    is_second = head_starts[1:] > starts[:-1]
    merge_WI = jnp.stack([leads, is_second, last_workers - workers[:-1], rows[1:], heads[1:]], axis=-1)
    return DecodePlan(work_WI.astype(jnp.int32), merge_WI.astype(jnp.int32))


def _last_segments(rows: Array, heads: Array, num_heads: int, tiles_B: Array) -> Array:
    """Segments of a worker that goes on to the end of all tiles."""
    return jnp.sum(tiles_B > 0) * num_heads - (rows[:-1] * num_heads + heads[:-1])


def plan_chunks(
    query_starts: Int[Array, " R"], row_counts: Int[Array, " 2"], *, tile: int, num_tokens: int
) -> Int[Array, "I 2"]:
    """Row and number of each tile of queries of rows [s, r) (row_counts); (-1, any) for places left over.

    query_starts: of all rows, and the end of the last. tile: queries. num_tokens: of the step's bucket.
    Made once a step. The number of places is a bound from the shapes alone. A row's last tile, which sees the
    most keys, comes first, so that no long one begins when all others are done.
    """
    num_rows = query_starts.shape[0] - 1
    num_places = min(num_tokens, (num_tokens + num_rows * (tile - 1)) // tile)
    rows = jnp.arange(num_rows)
    is_chunk_B = (rows >= row_counts[0]) & (rows < row_counts[1])
    tiles_B = jnp.where(is_chunk_B, (jnp.diff(query_starts) + tile - 1) // tile, 0)
    ends_B = jnp.cumsum(tiles_B)
    numbers = ends_B[-1] - 1 - jnp.arange(num_places)
    rows = jnp.minimum(jnp.searchsorted(ends_B, numbers, side="right", method="compare_all"), num_rows - 1)
    within = numbers - (ends_B - tiles_B)[rows]
    return jnp.stack([jnp.where(numbers >= 0, rows, -1), within], axis=-1).astype(jnp.int32)
