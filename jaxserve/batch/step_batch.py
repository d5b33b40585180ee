"""`StepBatch`: all that a step's program reads besides weights and pools, packed into one int32 vector.

One transfer a step instead of twenty. The host fills numpy views of the vector (`PackedStep`), the
program slices the same views out of it (`unpack`); `_fields` is the one place that knows the layout.
Floats travel as their bits.
"""

from dataclasses import dataclass, fields

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
    token_ids_T, positions_T; slots_T: where its key and value go; rope_lens_T: length that sets the
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


def _shapes(bucket: Bucket, page_size: int) -> dict[str, tuple[int, ...]]:
    """Field name -> shape, in the order they lie in the vector."""
    sizes = {"T": bucket.num_tokens, "B": bucket.num_rows, "U": num_updates(bucket, page_size)}
    shapes: dict[str, tuple[int, ...]] = {}
    for field in fields(StepBatch):
        suffix = field.name.rpartition("_")[2]
        shapes[field.name] = () if field.name.startswith("use_") else (sizes[suffix[0]],) if suffix in sizes else ()
    return shapes | {"row_counts": (2,), "query_starts": (sizes["B"] + 1,), "seeds_B2": (sizes["B"], 2)}


def packed_size(bucket: Bucket, page_size: int) -> int:
    """Length of the int32 vector of this bucket."""
    return sum(int(np.prod(shape)) for shape in _shapes(bucket, page_size).values())


class PackedStep:
    """The vector of one step and named numpy views into it, filled with padding to begin with."""

    def __init__(self, bucket: Bucket, page_size: int, *, num_slots: int, num_state_rows: int) -> None:
        self.bucket = bucket
        self.vector = np.zeros(packed_size(bucket, page_size), np.int32)
        self.views: dict[str, np.ndarray] = {}
        offset = 0
        for name, shape in _shapes(bucket, page_size).items():
            size = int(np.prod(shape))
            view = self.vector[offset : offset + size].reshape(shape)
            self.views[name] = view.view(np.float32) if name in _FLOATS else view
            offset += size
        self.views["slots_T"][...] = num_slots
        self.views["state_rows_B"][...] = num_state_rows
        self.views["update_rows_U"][...] = num_state_rows

    def __getitem__(self, name: str) -> np.ndarray:
        return self.views[name]


def unpack(vector: Int[Array, " W"], bucket: Bucket, page_size: int) -> StepBatch:
    """The fields of a packed vector, by static slices (free inside a program)."""
    values: dict[str, Array] = {}
    offset = 0
    for name, shape in _shapes(bucket, page_size).items():
        size = int(np.prod(shape))
        value = vector[offset : offset + size].reshape(shape)
        offset += size
        if name in _FLOATS:
            value = lax.bitcast_convert_type(value, jnp.float32)
        elif name.startswith("use_") or name == "is_active_B":
            value = value != 0
        values[name] = value
    return StepBatch(**values)
