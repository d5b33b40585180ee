"""A device's part of a model that lies over several, and what the parts have to say to each other.

A step runs on every device of a group at once, each with its slice of every layer's matrices and heads and of the
vocabulary (Megatron-LM, arXiv 1909.08053). The few places where that shows call these methods; on one device they
do nothing, and the program is the same as if they were not there.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array


@dataclass(frozen=True, slots=True)
class Shards:
    """axis: name of the mesh axis that the model is cut over, None for one device; size: parts."""

    axis: str | None = None
    size: int = 1

    def index(self) -> Array | int:
        """Which part this device has."""
        return 0 if self.axis is None else lax.axis_index(self.axis)

    def sum(self, x: Array) -> Array:
        """Over all parts."""
        return x if self.axis is None else lax.psum(x, self.axis)

    def gather(self, x: Array) -> Array:
        """[size, …]: everybody's x, in order."""
        return x[None] if self.axis is None else lax.all_gather(x, self.axis)

    def largest(self, x: Array) -> Array:
        """Over all parts, NaN where any is: a reduction over devices may lose a NaN."""
        return x if self.axis is None else jnp.max(self.gather(x), axis=0)


WHOLE = Shards()


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The slice of the vocabulary whose logits a device has: `num_local` entries, the last part padded to as many.

    size: V, of the whole.
    """

    size: int
    shards: Shards = WHOLE

    @property
    def num_local(self) -> int:
        return -(-self.size // self.shards.size)

    @property
    def is_padded(self) -> bool:
        return self.num_local * self.shards.size != self.size

    def offset(self) -> Array | int:
        """Id of the first entry."""
        return self.shards.index() * self.num_local

    def ids(self) -> Array:
        """Ids of all entries."""
        return jnp.arange(self.num_local, dtype=jnp.int32) + self.offset()

    def place_of(self, ids: Array) -> Array:
        """Where ids lie in the slice; `num_local`, which is out of it, for those of other devices."""
        if self.shards.axis is None:
            return ids
        places = ids - self.offset()
        return jnp.where((places >= 0) & (places < self.num_local), places, self.num_local)

    def own(self, whole_V: Array) -> Array:
        """The slice of an array over the whole vocabulary, 0 in the padding."""
        if self.shards.axis is None:
            return whole_V
        padded_V = jnp.pad(whole_V, (0, self.num_local * self.shards.size - self.size))
        return lax.dynamic_slice(padded_V, (self.offset(),), (self.num_local,))
