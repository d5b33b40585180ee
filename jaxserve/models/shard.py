"""One device's share of a model is a smaller model: fewer heads, a narrower feed-forward, a slice of the vocabulary."""

from dataclasses import replace

from jaxserve.core.config import ModelConfig
from jaxserve.core.errors import ConfigError


def shard_of(model: ModelConfig, num_shards: int) -> ModelConfig:
    """What each of num_shards devices computes. KV heads fewer than devices are on several of them; the vocabulary is
    padded. Raises ConfigError, naming what does not divide and the sizes that would do.
    """
    if num_shards == 1:
        return model
    for name, size in _must_divide(model):
        if size % num_shards:
            raise _does_not_divide(model, num_shards, f"{name}={size}" if "_" in name else f"{size} {name}")
    if model.num_kv_heads % num_shards and num_shards % model.num_kv_heads:
        raise _does_not_divide(model, num_shards, f"{model.num_kv_heads} KV heads")
    return replace(
        model,
        num_heads=model.num_heads // num_shards,
        num_kv_heads=max(1, model.num_kv_heads // num_shards),
        intermediate_size=model.intermediate_size // num_shards,
        vocab_size=-(-model.vocab_size // num_shards),
        **_experts_of(model, num_shards),
    )


def _experts_of(model: ModelConfig, num_shards: int) -> dict[str, int]:
    if model.expert_parallel:
        return {"num_experts": model.num_experts // num_shards, "num_expert_shards": num_shards}
    return {"moe_intermediate_size": model.moe_intermediate_size // num_shards}


def _must_divide(model: ModelConfig) -> list[tuple[str, int]]:
    """Names and sizes of all that is cut into equal parts, KV heads apart."""
    sizes = [("attention heads", model.num_heads)]
    if not model.sparse_layers or not all(model.sparse_layers):
        sizes.append(("intermediate_size", model.intermediate_size))
    if any(model.sparse_layers):
        experts = ("experts", model.num_experts)
        sizes.append(experts if model.expert_parallel else ("moe_intermediate_size", model.moe_intermediate_size))
    return sizes


def sizes_that_divide(model: ModelConfig, most: int = 64) -> list[int]:
    """Every tensor_parallel_size up to `most` that the model can be cut into."""
    kv_heads, sizes = model.num_kv_heads, [size for _, size in _must_divide(model)]
    divides = lambda n: not (any(size % n for size in sizes) or (kv_heads % n and n % kv_heads))  # noqa: E731
    return [n for n in range(1, most + 1) if divides(n)]


def _does_not_divide(model: ModelConfig, num_shards: int, what: str) -> ConfigError:
    sizes = ", ".join(map(str, sizes_that_divide(model)))
    return ConfigError(
        f"tensor_parallel_size={num_shards}: the model's {what} cannot be cut into {num_shards} equal parts; "
        f"this model takes {sizes}."
    )
