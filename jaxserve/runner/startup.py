"""Where an engine's programs come from when it starts: compiled here, or loaded from a bundle that was."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from jaxserve.batch.buckets import make_grid
from jaxserve.core.checkpoint import load_model_config, resolve_model_path
from jaxserve.core.config import EngineArgs, EngineConfig, ModelConfig
from jaxserve.core.errors import ConfigError, DoesNotFit
from jaxserve.demo import demo_checkpoint
from jaxserve.models.kv_scales import load_kv_scales
from jaxserve.models.weights import abstract_params, widened
from jaxserve.runner.bundle import Bundle
from jaxserve.runner.compiling import ProgramMaker, compile_program
from jaxserve.runner.device import Device
from jaxserve.runner.layout import Layout
from jaxserve.runner.program_key import Key, engine_key, machine_key, model_key
from jaxserve.runner.programs import Program, programs_of, state_shapes
from jaxserve.runner.resolve import resolve
from jaxserve.runner.sizes import matrix_itemsize, sizes_of
from jaxserve.runner.steps import Steps


def configure(args: EngineArgs, device: Device, progress: Callable[[str], None]) -> tuple[EngineConfig, Bundle | None]:
    """The numbers to run with, and the opened bundle if one is asked for."""
    path = resolve_model_path(
        args.model or str(demo_checkpoint()), args.revision, with_weights=args.load_format != "dummy"
    )
    model = model_config(args, path)
    if args.bundle is None:
        if args.bundle_sha256 is not None:
            raise ConfigError("bundle_sha256 is the fingerprint of a bundle: name the file with bundle")
        return resolve(args, model, path, device), None
    bundle = Bundle(Path(args.bundle), args.bundle_sha256)
    progress(f"bundle {bundle.path} with the fingerprint {bundle.fingerprint}")
    return _resolve_for(bundle, args, model, path, device), bundle


def model_config(args: EngineArgs, path: Path) -> ModelConfig:
    """What the checkpoint in path is, with what the flags say of it."""
    whole_experts = args.enable_expert_parallel
    return load_model_config(path, dtype=args.dtype, overrides=args.hf_overrides, expert_parallel=whole_experts)


def kv_scales_of(config: EngineConfig, progress: Callable[[str], None]) -> np.ndarray | None:
    """The checkpoint's scales of an 8-bit pool; None for 1."""
    if not config.pool.dtype.startswith("float8") or config.load_format == "dummy":
        return None
    scales_L2K = load_kv_scales(config.model, Path(config.model_path))
    progress("KV scales: " + ("1.0, the checkpoint has none" if scales_L2K is None else "the checkpoint's"))
    # A head that several devices share has its scale in each one's part.
    copies = max(1, config.tensor_parallel_size // config.model.num_kv_heads)
    return None if scales_L2K is None else np.repeat(scales_L2K, copies, axis=2)


def keeps_wide(model: ModelConfig, device: Device) -> bool:
    """Whether the weights lie on this device in more bytes than the model's dtype has (see `weights.widened`)."""
    return model.dtype != "float32" and not device.has_16_bit_products


def whole_key(config: EngineConfig, device: Device, *, has_kv_scales: bool) -> Key:
    """All that the programs of this engine depend upon."""
    itemsize = matrix_itemsize(config.model, device)
    numbers = engine_key(config, matrix_itemsize=itemsize, has_kv_scales=has_kv_scales)
    return machine_key() | model_key(config.model) | numbers


def list_programs(
    config: EngineConfig, device: Device, layout: Layout, *, has_kv_scales: bool
) -> tuple[Steps, list[Program]]:
    """Every program of this engine, largest first, and where they are to go once made."""
    halves = device.is_cpu
    grid = make_grid(config.scheduler.max_num_seqs, config.scheduler.max_num_batched_tokens)
    shapes = abstract_params(config.model, layout.shards)
    shapes = widened(shapes) if keeps_wide(config.model, device) else shapes
    state = state_shapes(config, layout, has_kv_scales=has_kv_scales)
    programs = programs_of(config, shapes, state, grid, halves=halves, layout=layout)
    return Steps(grid, halves=halves), programs


def start_making(
    config: EngineConfig,
    device: Device,
    bundle: Bundle | None,
    layout: Layout,
    *,
    has_kv_scales: bool,
    in_background: bool,
) -> tuple[Steps, ProgramMaker]:
    """Begin to compile, or to load, in threads: only shapes are needed, so weights may load meanwhile.

    in_background: what `Steps.first_needed` names is waited for, the rest comes while the engine serves, the
    smallest first: padding costs their steps most. A bundle is always loaded whole.
    Raises ConfigError where the bundle is for another engine.
    """
    if bundle is not None:
        bundle.check(whole_key(config, device, has_kv_scales=has_kv_scales))
    steps, programs = list_programs(config, device, layout, has_kv_scales=has_kv_scales)
    num_needed = len(programs)
    if in_background and bundle is None:
        first = steps.first_needed(programs)
        num_needed = len(first)
        programs = first + [program for program in reversed(programs) if program not in first]
    make = compile_program if bundle is None else partial(bundle.load, devices=layout.devices)
    maker = ProgramMaker(programs, num_needed, make, steps.add)
    maker.start()
    return steps, maker


def _resolve_for(bundle: Bundle, args: EngineArgs, model: ModelConfig, path: Path, device: Device) -> EngineConfig:
    """`resolve` with the bundle's numbers wherever the user leaves one open.

    The pool's size follows from free memory elsewhere; here it is the bundle's, and must fit.
    Raises ConfigError where machine or model are not the bundle's, or its pool does not fit.
    """
    bundle.check(machine_key() | model_key(model))
    key = bundle.key
    adopted = {
        name: key.get(name)
        for name, unset in (
            ("page_size", None),
            ("max_num_seqs", None),
            ("max_num_batched_tokens", None),
            ("max_model_len", "auto"),
        )
        if getattr(args, name) in (None, unset)
    }
    args = replace(args, **adopted)
    if args.kv_cache_memory_bytes is None:
        num_bytes = int(key.get("num_pages") or 1) * sizes_of(args, model, device).page_bytes
        args = replace(args, kv_cache_memory_bytes=num_bytes)
    try:
        return resolve(args, model, path, device)
    except DoesNotFit as error:
        raise ConfigError(
            f"--bundle: {bundle.path} is for a KV pool of {key.get('num_pages')} pages of {key.get('page_size')} "
            f"tokens, which is more than there is room for; run `jaxserve compile` again with a smaller "
            f"--gpu-memory-utilization or --kv-cache-memory-bytes. {error}"
        ) from error
