"""Llama-3.1-8B's whole steps, as the engine runs them with its defaults, compiled for an H200."""

import jax
import pytest
from h200_cases import MEMORY_BYTES, STEPS, llama_8b

from jaxserve.runner.memory import step_bytes
from jaxserve.runner.step import initial_state

pytestmark = pytest.mark.timeout(900)  # the first test compiles all steps: a minute on two idle cores

# Stated bounds, a little above what is needed now: lower them with what lowers the need.
MOST_TEMP_MB = {"decode_16": 34, "decode_256": 535, "mixed_8192": 920}
MOST_LAUNCHES_A_LAYER = {"decode_16": 12, "decode_256": 11, "mixed_8192": 15}


@pytest.fixture(scope="module")
def config():
    return llama_8b()


@pytest.fixture(params=STEPS)
def step(request, steps):
    return steps(request.param)


def test_a_step_is_one_command_buffer(step):
    """Nothing outside it, so one launch, and no condition that the host reads before it goes on."""
    outside = [launch for launch in step.launches if launch.depth == 0]
    assert [launch.kind for launch in outside] == ["kCommandBuffer"], outside


def test_nothing_is_sorted(step):
    """Where a GPU is, XLA has a library sort, which no command buffer holds: the host would read conditions between
    launches after all. Compiling without a GPU cannot show that."""
    assert step.num_sorts == 0


def test_the_pool_is_written_in_place(step, config):
    model, cache = config.model, config.cache
    made = step.made(cache.num_pages, 2, model.num_kv_heads, cache.page_size, model.head_dim)
    assert made == ["bf16 fusion"] * model.num_layers  # the scatter of each layer, and no copy
    state = jax.eval_shape(lambda: initial_state(config))
    assert step.alias_bytes == sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def test_weights_are_read_where_they_lie(step, config):
    model = config.model
    width, inner = model.hidden_size, model.intermediate_size
    num_qkv = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    for shape in ((model.vocab_size, width), (num_qkv, width), (width, width), (2 * inner, width), (width, inner)):
        assert step.made(*shape) == [] and step.made(*reversed(shape)) == [], shape


def test_working_memory_is_bounded(step, config):
    """And within what `resolve` left for it beside the pool, so nothing is computed twice to save memory."""
    assert step.temp_bytes <= MOST_TEMP_MB[step.name] * 1_000_000
    scheduler = config.scheduler
    num_tokens, num_rows = scheduler.max_num_batched_tokens, scheduler.max_num_seqs
    reserved = step_bytes(config.model, config.pool, num_tokens=num_tokens, num_rows=num_rows)
    assert step.temp_bytes <= reserved
    assert step.argument_bytes + step.temp_bytes <= MEMORY_BYTES
    assert [launch.name for launch in step.launches if "remat" in launch.name] == []


def test_a_step_can_go_into_a_bundle(step, report):
    """Its trees are those that `Program` knows (asserted where it is serialized); that it loads a GPU alone can say."""
    assert step.serialized_bytes > 100_000
    report(f"{step.name}: {step.serialized_bytes / 1e6:.1f} MB in a bundle")


def test_the_state_is_made_without_room_for_a_second_pool(steps):
    assert steps("initial_state").temp_bytes < 1_000_000


def test_each_layer_calls_each_kernel_once(step, config):
    assert step.kernels and step.num_calls == config.model.num_layers * len(step.kernels)
    assert sum(launch.is_ours for launch in step.launches) == step.num_calls
    assert all(kernel.spill_bytes == 0 and kernel.stack_bytes == 0 for kernel in step.kernels), step.kernels


def test_launches_a_layer(step, config, report):
    """The number that the next work lowers; the list is printed."""
    launches = step.between_layers(config.model.num_layers)
    products, ours = sum(x.is_product for x in launches), sum(x.is_ours for x in launches)
    registers = ", ".join(str(kernel.registers) for kernel in step.kernels)
    names = " ".join("(ours)" if x.is_ours else x.name for x in launches if x.depth == 1)
    line = (
        f"{step.name}: {len(launches)} launches a layer ({products} products, {ours} kernels of ours, "
        f"{len(launches) - products - ours} others), {len(step.launches)} in all, {step.temp_bytes / 1e6:.0f} MB of "
        f"working memory, registers {registers}\n  {names}"
    )
    report(line)
    assert len(launches) <= MOST_LAUNCHES_A_LAYER[step.name], line
