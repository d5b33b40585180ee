"""Every "auto" becomes a number that fits; what does not fit is refused with a value that would."""

from dataclasses import replace
from pathlib import Path

import jax
import pytest

from jaxserve.core.config import EngineArgs, ModelConfig, PoolConfig
from jaxserve.core.errors import ConfigError, DoesNotFit
from jaxserve.models.weights import random_params, widened
from jaxserve.runner.device import Device, claim_device
from jaxserve.runner.memory import format_bytes, kv_bytes_per_token, num_parameters
from jaxserve.runner.resolve import describe, resolve
from jaxserve.runner.sizes import sizes_of

LLAMA_8B = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=128256,
    hidden_size=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    intermediate_size=14336,
    max_position_embeddings=131072,
    sliding_windows=(None,) * 32,
)
CPU = Device("cpu", "cpu", None)
H200 = Device("gpu", "NVIDIA H200", 139 << 30, "9.0")


def resolved(device=CPU, model=LLAMA_8B, **args):
    return resolve(EngineArgs(**args), model, Path("/checkpoint"), device)


def test_known_sizes():
    assert num_parameters(LLAMA_8B) == 8_030_261_248
    assert kv_bytes_per_token(LLAMA_8B, PoolConfig("bfloat16", 128)) == 131_072


def test_a_gpu_is_filled_and_a_cpu_is_not():
    gpu, cpu = resolved(H200), resolved(CPU)
    pool_bytes = gpu.cache.num_pages * gpu.cache.page_size * 131_072
    assert 100 << 30 < pool_bytes < (139 << 30) - 2 * num_parameters(LLAMA_8B)
    assert gpu.scheduler.max_model_len == 131072
    assert (gpu.cache.page_size, gpu.scheduler.max_num_seqs, gpu.scheduler.max_num_batched_tokens) == (64, 1024, 8192)
    smaller = resolved(Device("gpu", "NVIDIA L40S", 44 << 30, "8.9"))
    assert smaller.scheduler.max_num_seqs == 256
    assert cpu.cache.num_pages * cpu.cache.page_size == cpu.scheduler.max_model_len == 8192  # 1 GiB of 128 KiB tokens
    assert "8,192 tokens in 256 pages of 32, 1 GiB of bfloat16, room for 1.0 requests" in describe(cpu)


def test_a_small_model_takes_no_more_than_its_requests_can_use():
    small = replace(LLAMA_8B, max_position_embeddings=128, num_layers=2)
    config = resolved(CPU, small, max_num_seqs=4)
    assert config.cache.num_pages * config.cache.page_size == 4 * 128


@pytest.mark.parametrize(
    ("asked", "dtype", "num_bytes"),
    [
        ("auto", "bfloat16", 2),
        ("float16", "float16", 2),
        ("float32", "float32", 4),
        ("fp8", "float8_e4m3fn", 1),
        ("fp8_e4m3", "float8_e4m3fn", 1),
        ("fp8_e5m2", "float8_e5m2", 1),
    ],
)
def test_the_pool_holds_as_many_tokens_as_its_dtype_allows(asked, dtype, num_bytes):
    config = resolved(kv_cache_dtype=asked)
    assert config.pool == PoolConfig(dtype, 128)
    assert kv_bytes_per_token(LLAMA_8B, config.pool) == 65_536 * num_bytes
    assert config.cache.num_pages * config.cache.page_size == (1 << 30) // (65_536 * num_bytes)
    assert f"1 GiB of {dtype}, room for" in describe(config)


def test_auto_is_the_models_dtype():
    assert resolved(model=replace(LLAMA_8B, dtype="float16")).pool.dtype == "float16"


@pytest.mark.parametrize(("head_dim", "wider"), [(80, 128), (96, 128), (128, 128), (256, 256)])
def test_heads_are_padded_where_the_kernels_need_it_and_counted_so(head_dim, wider):
    model = replace(LLAMA_8B, head_dim=head_dim)
    hopper, cpu = resolved(H200, model), resolved(CPU, model)
    older = resolved(replace(H200, compute_capability="8.0"), model)
    assert (hopper.pool.head_dim, cpu.pool.head_dim, older.pool.head_dim) == (wider, head_dim, head_dim)
    assert kv_bytes_per_token(model, hopper.pool) == 1024 * wider
    assert older.cache.num_pages / hopper.cache.num_pages == pytest.approx(wider / head_dim, rel=0.01)
    assert (f"(heads of {head_dim} padded to {wider})" in describe(hopper)) == (head_dim != wider)


def test_an_unset_limit_follows_the_set_one():
    assert resolved(max_num_batched_tokens=32).scheduler.max_num_seqs == 32
    assert resolved(max_num_seqs=2048).scheduler.max_num_batched_tokens == 2048


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            dict(max_model_len=9000),
            r"max_model_len=9000 .*at most 8192 or kv_cache_memory_bytes to at least 1182793728",
        ),
        (dict(max_model_len=200_000, kv_cache_memory_bytes=1 << 40), "above the 131072 positions"),
        (dict(max_model_len="long"), "must be a number of tokens or 'auto'"),
        (dict(max_model_len=0), "max_model_len=0"),
        (dict(kv_cache_memory_bytes=1000), "does not fit the KV pool of 1000 B"),
        (dict(max_num_seqs=0), "max_num_seqs=0 must be at least 1"),
        (dict(page_size=0), "page_size=0"),
        (dict(max_num_seqs=64, max_num_batched_tokens=32), "max_num_batched_tokens=32 is below max_num_seqs=64"),
        (dict(tensor_parallel_size=0), "tensor_parallel_size=0 must be at least 1"),
        (dict(tensor_parallel_size=5), "heads cannot be cut into 5 equal parts; this model takes 1, 2, 4"),
        (
            dict(kv_cache_dtype="int8"),
            r"kv_cache_dtype='int8' is unknown; choose one of auto, .*fp8, fp8_e4m3, fp8_e5m2",
        ),
    ],
)
def test_what_does_not_fit_is_named(args, message):
    with pytest.raises(ConfigError, match=message):
        resolved(**args)


def test_a_model_too_large_for_the_gpu():
    with pytest.raises(ConfigError, match=r"does not fit: 14\.96 GiB of weights .*may use 8 GiB"):
        resolved(Device("gpu", "small", 8 << 30))


FLOAT32_8B = replace(LLAMA_8B, dtype="float32")


@pytest.mark.parametrize(
    ("gib", "model", "args", "remedies"),
    [
        (139, LLAMA_8B, dict(max_num_seqs=256, max_num_batched_tokens=900_000), {"max_num_batched_tokens": 784_196}),
        (
            139,
            LLAMA_8B,
            dict(max_num_seqs=256, kv_cache_memory_bytes=1 << 40),
            {"kv_cache_memory_bytes": 131_124_355_072},
        ),
        (139, LLAMA_8B, dict(kv_cache_memory_bytes=1 << 20), {"kv_cache_memory_bytes": 2048 * 131_072}),
        (17, LLAMA_8B, {}, {"gpu_memory_utilization": 0.96, "max_num_batched_tokens": 4158}),
        (
            33,
            LLAMA_8B,
            dict(max_model_len=131_072),
            {
                "max_model_len": 127_936,
                "gpu_memory_utilization": 0.94,
                "max_num_batched_tokens": 5756,
                "max_num_seqs": 104,
                "kv_cache_dtype": "fp8",
            },
        ),
        (24, FLOAT32_8B, dict(max_model_len=2048), {"dtype": "bfloat16"}),
        (10, LLAMA_8B, {}, {}),
    ],
)
def test_what_would_fit_is_named(gib, model, args, remedies):
    """By hand: 16,060,522,496 bytes of weights, 167,936 a token and 2,693,376 a row of the step, 512 MiB left alone,
    and room for 2,048 tokens of 131,072 bytes where no length is asked for."""
    with pytest.raises(DoesNotFit) as caught:
        resolved(Device("gpu", "some", gib << 30), model, **args)
    assert caught.value.remedies == remedies
    said = [f"{flag} to " in str(caught.value) and f" {value}" in str(caught.value) for flag, value in remedies.items()]
    assert all(said) and (said or "it takes a device of 19.2 GiB" in str(caught.value))


def test_a_cpu_that_cannot_hold_the_weights_says_so_and_a_small_one_takes_what_is_left():
    with pytest.raises(DoesNotFit, match=r"does not fit: 14\.96 GiB .*may use 8 GiB\. .*takes a device of"):
        resolved(Device("cpu", "cpu", 8 << 30))
    pool = resolved(Device("cpu", "cpu", (16 << 30) - (200 << 20))).cache
    assert 0 < pool.num_pages < 256


def test_weights_kept_as_float32_are_counted_so():
    plain = sizes_of(EngineArgs(), LLAMA_8B, CPU)
    wide = sizes_of(EngineArgs(), LLAMA_8B, replace(CPU, has_16_bit_products=False))
    leaves = jax.eval_shape(lambda: widened(random_params(LLAMA_8B, 0)).leaves)
    assert wide.weight_bytes == sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    assert plain.weight_bytes == 2 * num_parameters(LLAMA_8B) < wide.weight_bytes


def test_a_share_of_memory_must_be_a_share():
    with pytest.raises(ConfigError, match="outside"):
        claim_device(1.5)
    assert claim_device(0.5).is_cpu


def test_bytes_for_people():
    assert [format_bytes(n) for n in (0, 1000, 1 << 20, 3 << 29, 1 << 45)] == [
        "0 B",
        "1000 B",
        "1 MiB",
        "1.5 GiB",
        "32 TiB",
    ]
