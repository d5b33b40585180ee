"""Which mesh axis a logical axis of an array lies on."""

from collections.abc import Sequence

from jax.sharding import PartitionSpec

from sharding.axes import TENSOR

RULES: dict[str, str | None] = {
    "vocab": TENSOR,  # rows of embedding and head, columns of logits
    "heads": TENSOR,  # query and KV heads, fused or not
    "ff": TENSOR,  # width of the feed-forward
    "experts": TENSOR,  # each whole on one device
    "all_experts": None,  # each cut within
    "expert_ff": None,  # width of an expert that is whole
    "embed": None,  # width of the model
    "head_dim": None,
}


def spec_of(logical_axes: Sequence[str | None]) -> PartitionSpec:
    """Where an array lies whose dimensions have these names; None for a dimension that is whole everywhere."""
    return PartitionSpec(*(None if name is None else RULES[name] for name in logical_axes))
