"""`jaxserve bench multihost`: a model's steps over ever more devices, of one host or several.

One `jax.jit` program over arrays with a `NamedSharding` a mesh, as the engine runs it: decode steps of a batch, and
prompts. Started on every host with the flags of `jaxserve serve` (`--nnodes`, `--node-rank`, `--master-addr`), rank 0
prints. With --simulate no device is needed: see `simulate.py`.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from jaxserve.bench import report
from jaxserve.bench.commands import say
from jaxserve.bench.flags import MultihostArgs
from jaxserve.bench.link_model import Links
from jaxserve.bench.mesh_steps import MeshSteps, mesh_layout, num_hosts_of
from jaxserve.bench.scaling_plot import write_plot
from jaxserve.bench.simulate import predict
from jaxserve.bench.step_case import Case
from jaxserve.core.checkpoint import load_model_config, resolve_model_path
from jaxserve.core.config import EngineArgs
from jaxserve.core.errors import ConfigError
from jaxserve.demo import demo_checkpoint
from jaxserve.engine.channel import own_address
from jaxserve.engine.ranks import Ranks, host_port, ranks_of
from jaxserve.runner import processes
from jaxserve.runner.device import claim_device

_JOIN_TIMEOUT_S = 600


def run(args: MultihostArgs, engine: EngineArgs, argv: Sequence[str]) -> int:
    """Measure or predict, print, write the result; the exit code."""
    for name in ("batch_size", "context_len", "prompt_len", "num_steps", "num_iters"):
        if getattr(args, name) < 1:
            raise ConfigError(f"{name}={getattr(args, name)} must be at least 1.")
    for path in (args.output_json, args.output_svg):
        report.check_writable(path)
    engine = _sized(args, engine)
    if args.simulate:
        _finish(args, argv, _simulated(args, engine), simulated=True)
        return 0
    ranks = ranks_of(engine)
    _join(ranks)
    device = claim_device(engine.gpu_memory_utilization)
    found = _measured(args, engine, device)
    if ranks is None or ranks.is_leader:
        _finish(args, argv, found | {"device": report.device_name(device.kind)}, simulated=False)
    if ranks is not None:
        processes.leave()
    return 0


def _sized(args: MultihostArgs, engine: EngineArgs) -> EngineArgs:
    """With limits that these steps just fit, where the user gave none."""
    budget = max(args.batch_size, args.prompt_len)
    return replace(
        engine,
        max_num_seqs=engine.max_num_seqs or args.batch_size,
        max_num_batched_tokens=engine.max_num_batched_tokens or budget,
    )


def _join(ranks: Ranks | None) -> None:
    if ranks is None:
        return
    bind = host_port(own_address(ranks.address), ranks.port) if ranks.is_leader else None
    processes.join(ranks.coordinator, ranks.num_ranks, ranks.rank, bind, b"bench", _JOIN_TIMEOUT_S)


def _cases(args: MultihostArgs) -> list[Case]:
    return [
        Case("decode", args.batch_size, args.context_len),
        Case("prompt", args.prompt_len, args.prompt_len),
    ]


def _sizes(args: MultihostArgs, most: int, hosts: int) -> list[int]:
    """The meshes: as asked, or every power of two that all hosts have an equal part of."""
    if args.tensor_parallel_sizes is not None:
        return _asked_sizes(args, 1)
    return [1 << power for power in range(most.bit_length()) if (1 << power) <= most and (1 << power) % hosts == 0]


def _asked_sizes(args: MultihostArgs, least: int) -> list[int]:
    texts = args.tensor_parallel_sizes or []
    if not all(text.isdecimal() and int(text) >= least for text in texts):
        raise ConfigError(f"tensor_parallel_sizes={' '.join(texts)} must be numbers of at least {least}.")
    return sorted({int(text) for text in texts})


def _measured(args: MultihostArgs, engine: EngineArgs, device: Any) -> dict[str, Any]:
    meshes: list[dict[str, Any]] = []
    config = None
    for size in _sizes(args, jax.device_count(), jax.process_count()):
        layout, cases = mesh_layout(size), _cases(args)
        steps = MeshSteps(engine, device, layout, cases)
        config = steps.config
        timed = [steps.time(case, args.num_steps, args.num_iters).to_dict() for case in cases]
        meshes.append({"tensor_parallel_size": size, "num_hosts": num_hosts_of(layout), "steps": timed})
        say(f"{size} devices: {timed[0]['step_ms']:.3f} ms a decode step")
    if config is None:
        raise ConfigError(f"{jax.device_count()} devices of {jax.process_count()} hosts: no mesh has equal parts.")
    return {"model_id": report.model_name(config.model_path), "dtype": config.model.dtype, "meshes": meshes}


def _simulated(args: MultihostArgs, engine: EngineArgs) -> dict[str, Any]:
    path = resolve_model_path(engine.model or str(demo_checkpoint()), engine.revision, with_weights=False)
    model = load_model_config(path, dtype=engine.dtype, overrides=engine.hf_overrides)
    links = Links(
        args.link_start_us * 1e-6,
        args.link_gbps * 1e9,
        args.hosts_link_start_us * 1e-6,
        args.hosts_link_gbps * 1e9,
    )
    meshes: list[dict[str, Any]] = []
    for size in _asked_sizes(args, 2) or (2, 4, 8, 16):
        num_hosts = -(-size // args.devices_per_host)
        if size % num_hosts:
            raise ConfigError(
                f"tensor_parallel_sizes: {size} devices are no equal parts of {num_hosts} hosts with "
                f"devices_per_host={args.devices_per_host}."
            )
        steps = [
            predict(engine, model, args.simulate_device, size, num_hosts, case, args.peak_share, links)
            for case in _cases(args)
        ]
        meshes.append({"tensor_parallel_size": size, "num_hosts": num_hosts, "steps": steps})
        say(f"{size} devices: {steps[0]['num_collectives']} collectives in a decode step")
    assumed = {
        "peak_share": args.peak_share,
        "link_gbps": args.link_gbps,
        "link_start_us": args.link_start_us,
        "hosts_link_gbps": args.hosts_link_gbps,
        "hosts_link_start_us": args.hosts_link_start_us,
    }
    result = {"model_id": report.model_name(str(path)), "dtype": model.dtype, "meshes": meshes}
    return result | {"device": f"simulated {args.simulate_device}", "assumed": assumed}


def _finish(args: MultihostArgs, argv: Sequence[str], found: dict[str, Any], *, simulated: bool) -> None:
    print(table(found, simulated=simulated))
    if args.output_json is not None:
        shape = {name: getattr(args, name) for name in ("batch_size", "context_len", "prompt_len")}
        kind = {"simulated": simulated, "shape": shape}
        report.write(args.output_json, report.base("multihost", argv) | kind | found)
    if args.output_svg is not None:
        sizes = [mesh["tensor_parallel_size"] for mesh in found["meshes"]]
        title = f"{found['model_id']} on {found['device']}: decode, {args.batch_size} x {args.context_len}"
        title += " (a prediction)" if simulated else ""
        write_plot(Path(args.output_svg), title, sizes, [mesh["steps"][0]["tokens_per_s"] for mesh in found["meshes"]])


def table(found: dict[str, Any], *, simulated: bool) -> str:
    """One line a mesh and kind of step; the gain is over the first mesh of the kind."""
    lines = [f"{found['model_id']} in {found['dtype']} on {found['device']}"]
    if simulated:
        lines.append("PREDICTED from shapes, the compiled collectives and assumed links; nothing was measured")
    lines.append(
        f"{'devices':>8}{'hosts':>7}{'step':>8}{'tokens':>8}{'ms':>10}{'steps/s':>10}{'tokens/s':>12}{'sums ms':>10}"
        f"{'share':>8}{'gain':>7}"
    )
    for kind in range(len(found["meshes"][0]["steps"])):
        first = found["meshes"][0]["steps"][kind]
        for mesh in found["meshes"]:
            one = mesh["steps"][kind]
            lines.append(
                f"{mesh['tensor_parallel_size']:>8}{mesh['num_hosts']:>7}{one['kind']:>8}{one['num_tokens']:>8}"
                f"{one['step_ms']:>10.3f}{one['steps_per_s']:>10.1f}{one['tokens_per_s']:>12,.0f}"
                f"{one['sums_ms']:>10.3f}{one['sums_share']:>8.1%}{first['step_ms'] / one['step_ms']:>7.2f}"
            )
    return "\n".join(lines)
