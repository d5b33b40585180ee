"""`StepBatch`: all that a step's program reads besides weights and pools, packed into one int32 vector.

One transfer a step instead of twenty. The host fills numpy views of the vector (`PackedStep`), the
program slices the same views out of it (`unpack`); `_layout` alone knows what lies where.
Floats travel as their bits.
"""

import math
from dataclasses import dataclass, fields
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxserve.batch.buckets import Bucket

_FLOATS = ("temperature_B", "top_p_B", "min_p_B", "repetition_B", "presence_B", "frequency_B")


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class StepBatch:
    """One step's inputs on the device. B rows, T tokens, U page-table updates.

    Tokens (padding: slot out of range, position 0):
    token_ids_T: an id below 0 stands for what state row -1 - id sampled in the step before;
    positions_T; slots_T: where its key and value go; rope_lens_T: length that sets the
    rotary scaling; next_ids_T: the known token that follows, for prompt log probabilities.
    Rows (padding: context_len 0, state_rows out of range):
    context_lens_B; query_starts (B + 1); last_tokens_B: index in T of the row's last token;
    state_rows_B: the row's line of the device state; is_active_B: samples a token;
    sample_positions_B: position of that token; seeds_B2 (low, high word); top_k_B and the floats.
    Updates of the page table: line update_rows_U, column update_columns_U becomes update_pages_U.
    Scalars: row_counts (single-token rows, rows); use_*: whether any row needs that work.
    """

    row_counts: Int[Array, " 2"]
    use_random: Bool[Array, ""]
    use_filters: Bool[Array, ""]
    use_penalties: Bool[Array, ""]
    use_bias: Bool[Array, ""]
    use_logprobs: Bool[Array, ""]
    use_prompt_logprobs: Bool[Array, ""]
    token_ids_T: Int[Array, " T"]
    positions_T: Int[Array, " T"]
    slots_T: Int[Array, " T"]
    rope_lens_T: Int[Array, " T"]
    next_ids_T: Int[Array, " T"]
    context_lens_B: Int[Array, " B"]
    query_starts: Int[Array, " B+1"]
    last_tokens_B: Int[Array, " B"]
    state_rows_B: Int[Array, " B"]
    is_active_B: Bool[Array, " B"]
    sample_positions_B: Int[Array, " B"]
    seeds_B2: Int[Array, "B 2"]
    top_k_B: Int[Array, " B"]
    temperature_B: Float[Array, " B"]
    top_p_B: Float[Array, " B"]
    min_p_B: Float[Array, " B"]
    repetition_B: Float[Array, " B"]
    presence_B: Float[Array, " B"]
    frequency_B: Float[Array, " B"]
    update_rows_U: Int[Array, " U"]
    update_columns_U: Int[Array, " U"]
    update_pages_U: Int[Array, " U"]


def num_updates(bucket: Bucket, page_size: int) -> int:
    """U: the most pages a step of this bucket can add, one partly filled page a row included."""
    return bucket.num_tokens // page_size + bucket.num_rows


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a field lies in the vector, in int32 words."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int


@lru_cache(maxsize=1024)
def _layout(bucket: Bucket, page_size: int) -> tuple[_Place, ...]:
    """Every field's place, in the order of `StepBatch`: the last letter of a name says its size."""
    sizes = {"T": bucket.num_tokens, "B": bucket.num_rows, "U": num_updates(bucket, page_size)}
    odd_shapes = {"row_counts": (2,), "query_starts": (bucket.num_rows + 1,), "seeds_B2": (bucket.num_rows, 2)}
    places: list[_Place] = []
    start = 0
    for field in fields(StepBatch):
        plain = () if field.name.startswith("use_") else (sizes.get(field.name[-1], 0),)
        shape = odd_shapes.get(field.name, plain)
        places.append(_Place(field.name, shape, start, start + math.prod(shape)))
        start = places[-1].stop
    return tuple(places)


def packed_size(bucket: Bucket, page_size: int) -> int:
    """Length of the int32 vector of this bucket."""
    return _layout(bucket, page_size)[-1].stop


class PackedStep:
    """The vector of one step and named numpy views into it, filled with padding to begin with."""

    def __init__(self, bucket: Bucket, page_size: int, *, num_slots: int, num_state_rows: int) -> None:
        self.bucket = bucket
        self.vector = np.zeros(packed_size(bucket, page_size), np.int32)
        self.views: dict[str, np.ndarray] = {}
        for place in _layout(bucket, page_size):
            view = self.vector[place.start : place.stop].reshape(place.shape)
            self.views[place.name] = view.view(np.float32) if place.name in _FLOATS else view
        self.views["slots_T"][...] = num_slots
        self.views["state_rows_B"][...] = num_state_rows
        self.views["update_rows_U"][...] = num_state_rows
        for name in ("top_p_B", "repetition_B"):  # what changes nothing
            self.views[name][...] = 1.0

    def __getitem__(self, name: str) -> np.ndarray:
        return self.views[name]


def unpack(vector: Int[Array, " W"], bucket: Bucket, page_size: int) -> StepBatch:
    """The fields of a packed vector, by static slices (free inside a program)."""
    values: dict[str, Array] = {}
    for place in _layout(bucket, page_size):
        value = vector[place.start : place.stop].reshape(place.shape)
        if place.name in _FLOATS:
            value = lax.bitcast_convert_type(value, jnp.float32)
        elif place.name.startswith("use_") or place.name == "is_active_B":
            value = value != 0
        values[place.name] = value
    return StepBatch(**values)
