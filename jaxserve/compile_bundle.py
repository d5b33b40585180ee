"""`jaxserve compile`: every program of an engine, compiled once and written to a file that other starts load."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from jaxserve.core.config import EngineArgs
from jaxserve.core.errors import ConfigError
from jaxserve.runner.bundle import Bundle, serialize, write_bundle
from jaxserve.runner.compile_cache import autotune_options, disable_compile_cache
from jaxserve.runner.compiling import ProgramMaker, compile_program
from jaxserve.runner.device import claim_device
from jaxserve.runner.layout import make_layout
from jaxserve.runner.programs import Program
from jaxserve.runner.resolve import describe
from jaxserve.runner.startup import configure, kv_scales_of, list_programs, whole_key


@dataclass(frozen=True)
class Written:
    """What was written; fingerprint: what `--bundle-sha256` takes."""

    path: Path
    fingerprint: str
    num_programs: int
    num_bytes: int


def compile_bundle(args: EngineArgs, output: Path, progress: Callable[[str], None]) -> Written:
    """Compile for this machine's device and write `output`, then load it again to see that it is whole.

    No weights are read. Raises ConfigError.
    """
    if args.bundle is not None:
        raise ConfigError("bundle is what `jaxserve compile` writes: name it with --output")
    device = claim_device(args.gpu_memory_utilization)
    disable_compile_cache()
    config, _ = configure(replace(args, compile_in_background=False), device, progress)
    progress(f"{config.model.architecture} in {config.model.dtype} on {device.kind}")
    progress(describe(config))
    has_kv_scales = kv_scales_of(config, progress) is not None
    layout = make_layout(config)
    _, programs = list_programs(config, device, layout, has_kv_scales=has_kv_scales)
    contents: dict[str, bytes] = {}
    lock = threading.Lock()

    def keep(program: Program, compiled: Any) -> None:
        content = serialize(program, compiled)
        with lock:
            contents[program.name] = content

    measured = autotune_options(args.compilation_cache_dir)

    def compile_one(program: Program) -> Any:
        return compile_program(replace(program, options=program.options | measured))

    _make(programs, compile_one, keep, lambda done, all: progress(f"compiled {done}/{all} programs"))
    ordered = {program.name: contents[program.name] for program in programs}
    fingerprint = write_bundle(output, whole_key(config, device, has_kv_scales=has_kv_scales), ordered)
    load = partial(Bundle(output, fingerprint).load, devices=layout.devices)
    _make(programs, load, lambda program, loaded: None, lambda done, all: None)
    return Written(output, fingerprint, len(programs), output.stat().st_size)


def _make(
    programs: list[Program],
    make: Callable[[Program], Any],
    done: Callable[[Program, Any], None],
    progress: Callable[[int, int], None],
) -> None:
    maker = ProgramMaker(programs, len(programs), make, done)
    maker.start()
    try:
        maker.wait(progress)
    finally:
        maker.stop()
