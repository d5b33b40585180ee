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


def plan_decode(
    context_lens_B: Int[Array, " B"], *, num_heads: int, tile: int, sliding_window: int | None, num_workers: int
) -> Int[Array, "W 8"]:
    """A `PlanLine` a worker, made once a step from the context lengths alone, the same for every layer.

    context_lens_B: 0 for rows without a query, all of which come after those with one. num_heads: KV heads.
    Sums over comparisons, not scans: three small launches.
    """
    num_rows = context_lens_B.shape[0]
    tiles_B = tile_range(context_lens_B, tile, sliding_window)[1]
    order = jnp.arange(num_rows)
    ends_B = num_heads * jnp.sum(jnp.where(order[None, :] <= order[:, None], tiles_B[None, :], 0), axis=1)
    total, num_used = num_heads * jnp.sum(tiles_B), jnp.sum(tiles_B > 0)
    num_active = jnp.clip(total, 1, num_workers)
    starts = jnp.minimum(jnp.arange(num_workers + 1), num_active) * total // num_active

    rows = jnp.minimum(jnp.sum(ends_B[None, :] <= starts[:, None], axis=1), num_rows - 1)
    row_tiles = jnp.maximum(tiles_B[rows], 1)
    within = starts - (ends_B[rows] - num_heads * tiles_B[rows])
    heads, tiles = within // row_tiles, within % row_tiles
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
    line = PlanLine(*begins, counts, num_segments, used, leaders, num_following)
    return jnp.stack([column.astype(jnp.int32) for column in line], axis=-1)
