"""What every rank of a group makes in the same way: the numbers to run with, the weights, the programs, the runner."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jaxserve.core.config import EngineArgs, EngineConfig
from jaxserve.models.weights import LoadedModel, load_params, widened
from jaxserve.runner.compile_cache import CompileCounter, enable_compile_cache
from jaxserve.runner.compiling import ProgramMaker
from jaxserve.runner.device import Device, claim_device
from jaxserve.runner.layout import Layout, check_spread, make_layout
from jaxserve.runner.meter import StepCosts, step_costs
from jaxserve.runner.model_runner import ModelRunner
from jaxserve.runner.resolve import describe
from jaxserve.runner.startup import configure, keeps_wide, kv_scales_of, start_making

Agree = Callable[[EngineConfig], EngineConfig]


@dataclass(frozen=True)
class Parts:
    """devices: for people, what the model lies on. times: seconds of each phase, one after the other.

    compiles: counts compilations from before the first.
    """

    config: EngineConfig
    devices: str
    costs: StepCosts
    runner: ModelRunner
    maker: ProgramMaker
    compiles: CompileCounter
    times: dict[str, float]


def keep(config: EngineConfig) -> EngineConfig:
    """The agreement of a rank that is alone."""
    return config


def make_parts(args: EngineArgs, progress: Callable[[str], None], agree: Agree = keep) -> Parts:
    """Load the weights and compile everything, or what is needed to begin.

    agree: what a group makes of this rank's numbers, before anything depends on them.
    Raises ConfigError or CheckpointError.
    """
    started = time.monotonic()
    device = claim_device(args.gpu_memory_utilization)
    enable_compile_cache(args.compilation_cache_dir)
    compiles = CompileCounter()
    config, bundle = configure(args, device, progress)
    config = agree(config)
    devices = device.kind if config.tensor_parallel_size == 1 else f"{config.tensor_parallel_size} x {device.kind}"
    progress(f"{config.model.architecture} in {config.model.dtype} on {devices}")
    progress(describe(config))
    costs = step_costs(config, device, args.device_peaks)
    layout = make_layout(config)
    check_spread(layout)
    scales_L2K = kv_scales_of(config, progress)
    configured = time.monotonic()
    has_scales = scales_L2K is not None
    steps, maker = start_making(
        config, device, bundle, layout, has_kv_scales=has_scales, in_background=args.compile_in_background
    )
    try:
        loaded = _load_weights(config, device, layout, progress)
        weights_loaded = time.monotonic()
        verb = "compiled" if bundle is None else "loaded"
        maker.wait(lambda done, needed: progress(f"{verb} {done}/{needed} programs"))
        compiled = time.monotonic()
        runner = ModelRunner(config, loaded, steps, scales_L2K, waits=layout.waits)
    except BaseException:
        maker.stop()
        raise
    times = {
        "config": configured - started,
        "weights": weights_loaded - configured,
        "compile": compiled - weights_loaded,
        "capture": time.monotonic() - compiled,
    }
    return Parts(config, devices, costs, runner, maker, compiles, times)


def _load_weights(config: EngineConfig, device: Device, layout: Layout, progress: Callable[[str], None]) -> LoadedModel:
    path = Path(config.model_path)
    loaded = load_params(config.model, path, config.load_format, config.seed, layout.shards, layout.place)
    if not keeps_wide(config.model, device):
        return loaded
    progress("weights kept as float32: this processor has no 16-bit products")
    return widened(loaded)
