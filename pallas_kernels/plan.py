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


class PlanLine(NamedTuple):
    """A worker's line of the plan.

    row, head, tile: where it begins; tile counts within the head. num_tiles, num_segments: of its run.
    num_used: rows with a context (the same in every line).
    How the head that it begins with was cut: leader, the worker with the head's first part;
    num_following, the workers after it that go on with the head.
    """

    row: Array
    head: Array
    tile: Array
    num_tiles: Array
    num_segments: Array
    num_used: Array
    leader: Array
    num_following: Array


def tile_range(context_len: Array, tile: int, sliding_window: int | None) -> tuple[Array, Array]:
    """The first tile of keys that a row's single query sees, and how many."""
    first = 0 * context_len if sliding_window is None else jnp.maximum(context_len - sliding_window, 0) // tile
    return first, (context_len + tile - 1) // tile - first


class FirstTile(NamedTuple):
    """One of the tiles that a worker begins with, so that it can fetch it before it has looked anything up.

    head; tile: count from the row's first token; pages: where the tile's keys are, one or several.
    """

    head: Array
    tile: Array
    pages: list[Array]


class _Line(NamedTuple):
    """The line of all tiles. tiles_B: of one head of a row; ends_B: where a row ends; num_cuts: workers with tiles."""

    tiles_B: Array
    ends_B: Array
    total: Array
    num_cuts: Array
    num_heads: int

    def starts(self, num_workers: int) -> Array:
        """Where each worker begins, and where the last one ends."""
        return jnp.minimum(jnp.arange(num_workers + 1), self.num_cuts) * self.total // self.num_cuts

    def places(self, positions: Array) -> tuple[Array, Array, Array, Array]:
        """Row, head and tile (of the row's tiles that are seen) at some positions, and how many tiles the row has."""
        rows = jnp.minimum(jnp.sum(self.ends_B <= positions[..., None], axis=-1), self.tiles_B.shape[0] - 1)
        row_tiles = jnp.maximum(self.tiles_B[rows], 1)
        within = positions - (self.ends_B[rows] - self.num_heads * self.tiles_B[rows])
        return rows, within // row_tiles, within % row_tiles, row_tiles


def _line_of(context_lens_B: Array, num_heads: int, tile: int, sliding_window: int | None, num_workers: int) -> _Line:
    tiles_B = tile_range(context_lens_B, tile, sliding_window)[1]
    order = jnp.arange(context_lens_B.shape[0])
    ends_B = num_heads * jnp.sum(jnp.where(order[None, :] <= order[:, None], tiles_B[None, :], 0), axis=1)
    total = num_heads * jnp.sum(tiles_B)
    return _Line(tiles_B, ends_B, total, jnp.clip(total, 1, num_workers), num_heads)


def plan_decode(
    context_lens_B: Int[Array, " B"], *, num_heads: int, tile: int, sliding_window: int | None, num_workers: int
) -> Int[Array, "W 8"]:
    """A `PlanLine` a worker, made once a step from the context lengths alone, the same for every layer.

    context_lens_B: 0 for rows without a query, all of which come after those with one. num_heads: KV heads.
    Sums over comparisons, not scans: three small launches.
    """
    line = _line_of(context_lens_B, num_heads, tile, sliding_window, num_workers)
    total, num_active, num_used = line.total, line.num_cuts, jnp.sum(line.tiles_B > 0)
    starts = line.starts(num_workers)
    rows, heads, tiles, row_tiles = line.places(starts)
    counts = jnp.diff(starts)
    # A worker ends inside a head's tiles where the next one does not begin with a head's first tile.
    row_heads = jnp.where(starts < total, rows * num_heads + heads, num_used * num_heads)
    ends_inside = (tiles[1:] > 0) & (starts[1:] < total)
    num_segments = jnp.where(counts > 0, jnp.diff(row_heads) + ends_inside, 0)

    def worker_of(tiles: Array) -> Array:
        """The last worker that starts at or before a tile: starts[w] <= t is w * total < (t + 1) * num_active."""
        return ((tiles + 1) * num_active - 1) // jnp.maximum(total, 1)

    head_starts = (starts - tiles)[:-1]
    leaders = worker_of(head_starts)
    num_following = worker_of(head_starts + row_tiles[:-1] - 1) - leaders
    used = jnp.broadcast_to(num_used, counts.shape)
    begins = rows[:-1], heads[:-1], tiles[:-1]
    planned = PlanLine(*begins, counts, num_segments, used, leaders, num_following)
    return jnp.stack([column.astype(jnp.int32) for column in planned], axis=-1)


def plan_first_tiles(
    context_lens_B: Int[Array, " B"],
    page_table_BM: Int[Array, "B M"],
    *,
    num_heads: int,
    tile: int,
    sliding_window: int | None,
    num_workers: int,
    page_size: int,
    num_pages: int,
    num_tiles: int,
) -> Int[Array, "W F"]:
    """A worker's first num_tiles tiles, each a `FirstTile` of 2 + tile // page_size (at least 1) numbers, then
    the row, head and tile of the place after them. Where a worker has fewer, the rest means nothing.

    Tile and page are within the row's table and the pool whatever the worker's share.
    """
    line = _line_of(context_lens_B, num_heads, tile, sliding_window, num_workers)
    positions = line.starts(num_workers)[:-1, None] + jnp.arange(num_tiles + 1)
    rows, heads, tiles, _ = line.places(jnp.clip(positions, 0, jnp.maximum(line.total - 1, 0)))
    tokens = (tile_range(context_lens_B, tile, sliding_window)[0][rows] + tiles) * tile
    num_parts = max(1, tile // page_size)
    columns = tokens[..., None] // page_size + jnp.arange(num_parts)
    columns = jnp.clip(columns, 0, page_table_BM.shape[1] - 1)
    pages = jnp.clip(page_table_BM[rows[..., None], columns], 0, num_pages - 1)
    first = jnp.concatenate([heads[..., None], (tokens // tile)[..., None], pages], axis=-1)[:, :num_tiles]
    after = jnp.stack([rows, heads, tiles], axis=-1)[:, num_tiles]
    return jnp.concatenate([first.reshape(num_workers, -1), after], axis=-1).astype(jnp.int32)
