"""A bucket's whole step from shapes to a lowered program, for the device at hand or for one that is not there.

What is compiled on a GPU before the first request, and what is compiled for a GPU without one (to check
it, to plan its memory), is lowered by one function: both are the same program.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxserve.batch.buckets import Bucket
from jaxserve.batch.step_batch import packed_size
from jaxserve.core.config import EngineConfig
from jaxserve.models.weights import LoadedModel
from jaxserve.runner.layout import EVERYWHERE, Layout, leaf_specs, state_specs
from jaxserve.runner.step import DeviceState, ForwardFunction, SampleFunction, join, make_forward, make_sample

# XLA's own list of what a command buffer (a CUDA graph) may hold, and loops. The searches of top-k and top-p
# are loops in branches, and a loop that is left out leaves out every condition around it: each step would be
# several launches, with the host waiting for the device between them to read a condition.
_COMMAND_BUFFER = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE"


# From here on cuBLAS is faster than the Triton kernels that XLA's autotuner prefers to it (2 to 3 % of a step at 128
# tokens and at 8,192, level at 32, Llama-3.1-8B on an H200), and without them a program compiles in half the time.
# One token is the other way round: 5.8 against 8.2 ms.
_FROM_HERE_CUBLAS = 32


def compiler_options(platform: str, num_tokens: int) -> dict[str, str | bool]:
    """XLA's options for a step of so many tokens on this platform ("gpu", "cpu", …) where they are not its defaults."""
    if platform != "gpu":
        return {}
    return {
        "xla_gpu_enable_command_buffer": _COMMAND_BUFFER,
        "xla_gpu_enable_triton_gemm": num_tokens < _FROM_HERE_CUBLAS,
    }


def lower_step(
    config: EngineConfig,
    loaded: LoadedModel,
    bucket: Bucket,
    state: DeviceState,
    placement: jax.sharding.Sharding | None = None,
    layout: Layout | None = None,
) -> jax.stages.Lowered:
    """Model and sampler in one program, `(weight leaves, DeviceState donated, packed vector)`, to be compiled.

    loaded: of its leaves only shapes and dtypes are read, so `abstract_params` will do; the same of
        state, `initial_state` or its shapes.
    placement: where everything lies, the default device if None. Devices that are not there
        (`sharding.targets`) will do for compiling; config.attention_implementation must then name
        one, as "auto" looks at this machine's devices.
    layout: over several devices, theirs or such that are not there; then it says where everything lies.
    """
    layout = layout or Layout()
    step = join(forward_of(config, loaded, bucket, layout), sample_of(config, layout))
    places = (leaf_specs(loaded), state_specs(state), EVERYWHERE)
    inputs = (loaded.leaves, state, packed_spec(config, bucket))
    inputs = specs(inputs, placement) if layout.mesh is None else layout.placed(inputs, places)
    return layout.jit(step, places, (EVERYWHERE, places[1]), donated=1).lower(*inputs)


def forward_of(config: EngineConfig, loaded: LoadedModel, bucket: Bucket, layout: Layout) -> ForwardFunction:
    """`make_forward` with what an engine's config says, of one device's shards."""
    attention, own = config.attention_implementation, layout.own(config)
    return make_forward(own.model, loaded, bucket, config.cache.page_size, config.num_logprobs, attention)


def sample_of(config: EngineConfig, layout: Layout) -> SampleFunction:
    """`make_sample` with what an engine's config says, of one device's shards."""
    return make_sample(config.num_logprobs, layout.vocabulary(config.model))


def packed_spec(config: EngineConfig, bucket: Bucket) -> jax.ShapeDtypeStruct:
    """Shape of the packed vector of this bucket."""
    return jax.ShapeDtypeStruct((packed_size(bucket, config.cache.page_size),), jnp.int32)


def specs(tree: Any, placement: jax.sharding.Sharding | None = None) -> Any:
    """The shapes and dtypes of a tree of arrays (or of such), lying where `placement` says."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placement), tree)
