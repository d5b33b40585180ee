"""A 70B model's decode step over 2, 4, 8 and 2 x 8 H200s: what the devices tell each other, and what stays in place."""

from dataclasses import replace

import jax
import pytest
from h200_cases import CUT_BUCKET, CUTS, llama_70b

from jaxserve.models.shard import shard_of
from jaxserve.runner.step import initial_state

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(params=CUTS)
def cut(request, cuts):
    return cuts(request.param)


@pytest.fixture
def config(cut):
    num_hosts, num_each = CUTS[cut.name]
    return llama_70b(num_hosts * num_each)


def test_two_sums_a_layer_and_one_for_the_embedding(cut, config, report):
    hidden = CUT_BUCKET.num_rows * config.model.hidden_size
    sums = [operation for operation, elements in cut.collectives if elements == hidden]
    assert sums == ["all-reduce"] * (2 * config.model.num_layers + 1)
    report(f"{cut.name}: {len(sums)} sums of {hidden} numbers, {len(cut.collectives) - len(sums)} smaller exchanges")


def test_nothing_else_is_larger_than_a_few_numbers_a_row(cut, config):
    """No logits, weights, keys or values travel: at most each device's best few of each row."""
    most = CUT_BUCKET.num_rows * config.tensor_parallel_size * config.num_logprobs
    hidden = CUT_BUCKET.num_rows * config.model.hidden_size
    others = [elements for _, elements in cut.collectives if elements != hidden]
    assert others and max(others) <= most, others


def test_each_device_writes_its_pool_in_place(cut, config):
    cache, own = config.cache, shard_of(config.model, config.tensor_parallel_size)
    made = cut.made(cache.num_pages, 2, own.num_kv_heads, cache.page_size, own.head_dim)
    assert made == ["bf16 fusion"] * own.num_layers
    state = jax.eval_shape(lambda: initial_state(replace(config, model=own)))
    assert cut.alias_bytes == sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def test_each_device_reads_its_weights_where_they_lie(cut, config):
    own = shard_of(config.model, config.tensor_parallel_size)
    width, inner, heads = own.hidden_size, own.intermediate_size, own.num_heads * own.head_dim
    num_qkv = (own.num_heads + 2 * own.num_kv_heads) * own.head_dim
    for shape in ((own.vocab_size, width), (num_qkv, width), (width, heads), (2 * inner, width), (width, inner)):
        assert cut.made(*shape) == [] and cut.made(*reversed(shape)) == [], shape


def test_no_kernel_spills(cut, config):
    assert cut.kernels and cut.num_calls == config.model.num_layers * len(cut.kernels)
    assert all(kernel.spill_bytes == 0 and kernel.stack_bytes == 0 for kernel in cut.kernels), cut.kernels
