"""Which tile of queries each program of the chunk kernel takes."""

import jax.numpy as jnp
from jaxtyping import Array, Int


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
