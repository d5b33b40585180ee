"""`jaxserve plan`: whether a model fits a device, how much of it, and how fast it can be at most. No GPU, no weights.

Memory comes from the functions the engine itself starts with, speed from the roofline of the model's shapes.
"""

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jaxserve.core.checkpoint import resolve_model_path
from jaxserve.core.config import EngineArgs, EngineConfig, ModelConfig, PlanArgs
from jaxserve.core.errors import ConfigError
from jaxserve.demo import demo_checkpoint
from jaxserve.models.shard import shard_of
from jaxserve.runner.device import Device, check_memory_share, this_cpu
from jaxserve.runner.memory import format_bytes, num_parameters
from jaxserve.runner.resolve import resolve
from jaxserve.runner.roofline import Rates, decode_s, prefill_s, rates_of
from jaxserve.runner.sizes import Sizes, matrix_itemsize, sizes_of
from jaxserve.runner.startup import model_config
from sharding.targets.peaks import Peaks, device_peaks

_BATCHES = (1, 16, 64, 256)
_PROMPTS = (128, 1024, 8192, 32768, 131072)


@dataclass(frozen=True)
class MemoryPlan:
    """Who takes what of the memory the engine may use, bytes. unused: what the pool does not need (a CPU), or None."""

    usable: int | None
    weights: int
    kv_pool: int
    step: int
    reserve: int
    unused: int | None


@dataclass(frozen=True)
class DecodePoint:
    """A step of `batch` requests with context_len tokens each."""

    batch: int
    context_len: int
    step_ms: float
    tokens_per_s: float


@dataclass(frozen=True)
class PromptPoint:
    """A prompt alone, without what the prefix cache may hold of it."""

    num_prompt_tokens: int
    ttft_ms: float


@dataclass(frozen=True)
class Plan:
    """What an engine would have. Tokens unless the name says otherwise.

    longest_context: the largest max_model_len that fits. num_full_requests: of max_model_len that the pool holds.
    num_devices: that the model is cut over; memory is of one of them.
    num_requests: that run together at context_len tokens each. decode and prompts are empty where the device's
    rates are unknown; is_floor: they assume the whole of them.
    """

    model: str
    architecture: str
    dtype: str
    num_parameters: int
    device: Peaks
    num_devices: int
    bandwidth_efficiency: float
    compute_efficiency: float
    is_floor: bool
    memory: MemoryPlan
    kv_dtype: str
    kv_bytes_per_token: int
    page_size: int
    num_pages: int
    num_kv_tokens: int
    max_model_len: int
    longest_context: int
    max_num_seqs: int
    max_num_batched_tokens: int
    num_full_requests: float
    context_len: int
    num_requests: int
    decode: tuple[DecodePoint, ...]
    prompts: tuple[PromptPoint, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"fits": True, **asdict(self)}


def make_plan(plan_args: PlanArgs, args: EngineArgs) -> Plan:
    """Raises DoesNotFit, naming flags and values that would do, or ConfigError for bad input."""
    _check(plan_args)
    path = _config_path(args)
    return plan_model(plan_args, args, model_config(args, path), path)


def plan_model(plan_args: PlanArgs, args: EngineArgs, model: ModelConfig, path: Path) -> Plan:
    """`make_plan` of a config that was read already."""
    peaks, device = planned_device(plan_args.device, args.gpu_memory_utilization)
    config = resolve(args, model, path, device)
    device = device.one_of(args.tensor_parallel_size)
    sizes = sizes_of(args, model, device)
    longest = resolve(replace(args, max_model_len="auto"), model, path, device).scheduler.max_model_len
    num_tokens = config.cache.num_pages * config.cache.page_size
    context_len = min(plan_args.context_len, config.scheduler.max_model_len)
    pages = math.ceil(context_len / config.cache.page_size)
    num_requests = min(config.scheduler.max_num_seqs, config.cache.num_pages // pages)
    rates = _rates(peaks, model.dtype, plan_args)
    itemsize = matrix_itemsize(model, device)
    own = replace(config, model=shard_of(model, args.tensor_parallel_size))
    return Plan(
        model=args.model or str(path),
        architecture=model.architecture,
        dtype=model.dtype,
        num_parameters=num_parameters(model),
        device=peaks,
        num_devices=args.tensor_parallel_size,
        bandwidth_efficiency=plan_args.bandwidth_efficiency,
        compute_efficiency=plan_args.compute_efficiency,
        is_floor=plan_args.bandwidth_efficiency == plan_args.compute_efficiency == 1,
        memory=_memory(config, sizes, device),
        kv_dtype=config.pool.dtype,
        kv_bytes_per_token=sizes.page_bytes // sizes.page_size,
        page_size=config.cache.page_size,
        num_pages=config.cache.num_pages,
        num_kv_tokens=num_tokens,
        max_model_len=config.scheduler.max_model_len,
        longest_context=longest,
        max_num_seqs=config.scheduler.max_num_seqs,
        max_num_batched_tokens=config.scheduler.max_num_batched_tokens,
        num_full_requests=num_tokens / config.scheduler.max_model_len,
        context_len=context_len,
        num_requests=num_requests,
        decode=() if rates is None else _decode(own, rates, context_len, num_requests, itemsize),
        prompts=() if rates is None else _prompts(own, rates, itemsize),
    )


def planned_device(text: str, gpu_memory_utilization: float) -> tuple[Peaks, Device]:
    """What the device named by --device can do, and what the engine would see of it."""
    share, cpu = check_memory_share(gpu_memory_utilization), this_cpu()
    here = Peaks("cpu", cpu.memory_bytes)
    try:
        peaks = device_peaks(text, here)
    except ValueError as error:
        raise ConfigError(f"--device: {error}") from error
    if peaks.kind == here.kind:
        return peaks, replace(cpu, memory_bytes=peaks.memory_bytes)
    if peaks.memory_bytes is None:
        raise ConfigError(f"--device: {text!r} does not say how much memory it has; add memory=24GiB.")
    return peaks, Device("gpu", peaks.kind, int(share * peaks.memory_bytes), peaks.compute_capability)


def _check(plan_args: PlanArgs) -> None:
    if plan_args.context_len < 1:
        raise ConfigError(f"context_len={plan_args.context_len} must be at least 1.")
    for name in ("bandwidth_efficiency", "compute_efficiency"):
        value = getattr(plan_args, name)
        if not 0 < value <= 1:
            raise ConfigError(f"{name}={value} is outside (0, 1]; 1 predicts the floor.")


def _config_path(args: EngineArgs) -> Path:
    """The checkpoint's directory, or a config file by itself."""
    model = args.model or str(demo_checkpoint())
    file = Path(model).expanduser()
    return file if file.is_file() else resolve_model_path(model, args.revision, with_weights=False)


def _rates(peaks: Peaks, dtype: str, plan_args: PlanArgs) -> Rates | None:
    """The share of the device's rates that is assumed; None where one is unknown."""
    rates = rates_of(peaks, dtype)
    if rates is None:
        return None
    return Rates(rates.bandwidth * plan_args.bandwidth_efficiency, rates.flops * plan_args.compute_efficiency)


def _memory(config: EngineConfig, sizes: Sizes, device: Device) -> MemoryPlan:
    pool = config.cache.num_pages * sizes.page_bytes
    taken = sizes.weight_bytes + pool + sizes.step_bytes
    reserve = sizes.reserve_bytes
    unused = None
    if device.memory_bytes is not None:
        reserve = min(reserve, device.memory_bytes - taken)  # a pool of a stated size may reach into it
        unused = device.memory_bytes - taken - reserve
    return MemoryPlan(device.memory_bytes, sizes.weight_bytes, pool, sizes.step_bytes, reserve, unused)


def _decode(
    config: EngineConfig, rates: Rates, context_len: int, num_requests: int, itemsize: int
) -> tuple[DecodePoint, ...]:
    """One point a batch size that fits, and the largest that does."""
    points: list[DecodePoint] = []
    for batch in sorted({*(size for size in _BATCHES if size <= num_requests), num_requests}):
        step_s = decode_s(config.model, config.pool, rates, num_rows=batch, context_len=context_len, itemsize=itemsize)
        points.append(DecodePoint(batch, context_len, step_s * 1e3, batch / step_s))
    return tuple(points)


def _prompts(config: EngineConfig, rates: Rates, itemsize: int) -> tuple[PromptPoint, ...]:
    """Prompts of some lengths that leave room for a token."""
    lengths = [n for n in _PROMPTS if n < config.scheduler.max_model_len] or [config.scheduler.max_model_len]
    chunk = config.scheduler.max_num_batched_tokens
    return tuple(
        PromptPoint(n, 1e3 * prefill_s(config.model, config.pool, rates, num_tokens=n, chunk=chunk, itemsize=itemsize))
        for n in lengths
    )


def format_plan(plan: Plan) -> str:
    """The plan as short aligned tables for a terminal."""
    memory = plan.memory
    each = "" if plan.num_devices == 1 else f" on each of {plan.num_devices}: what follows is of one"
    usable = "unknown" if memory.usable is None else format_bytes(memory.usable)
    rows = [
        ("model", f"{plan.model}: {plan.architecture}, {_count(plan.num_parameters)} parameters in {plan.dtype}"),
        ("device", f"{plan.device.kind}, {usable} to use{each}"),
        ("fits", "yes"),
        ("", ""),
        ("weights", format_bytes(memory.weights)),
        (
            "KV pool",
            f"{format_bytes(memory.kv_pool)} of {plan.kv_dtype}, {format_bytes(plan.kv_bytes_per_token)} a token",
        ),
        ("step", f"{format_bytes(memory.step)} working memory of {plan.max_num_batched_tokens:,} tokens"),
        ("reserve", format_bytes(memory.reserve)),
        *([("unused", format_bytes(memory.unused))] if memory.unused is not None else []),
        ("", ""),
        ("KV tokens", f"{plan.num_kv_tokens:,} in {plan.num_pages:,} pages of {plan.page_size}"),
        ("longest context", f"{plan.longest_context:,} tokens (max_model_len {plan.max_model_len:,})"),
        ("requests", f"{plan.num_full_requests:.1f} of {plan.max_model_len:,} tokens in the pool"),
        ("", f"{plan.num_requests} together at {plan.context_len:,} tokens (max_num_seqs {plan.max_num_seqs})"),
    ]
    lines = [f"{name:<16}{text}".rstrip() for name, text in rows]
    return "\n".join([*lines, "", *_speed_lines(plan)])


def _speed_lines(plan: Plan) -> list[str]:
    if not plan.decode:
        return ["speed: not predicted, as the device's rates are unknown: --device cpu,bandwidth=40GB/s,tflops=0.5"]
    what = "floor" if plan.is_floor else "estimate"
    what += ", sums over devices not counted" if plan.num_devices > 1 else ""
    shares = f" at {plan.bandwidth_efficiency:.0%} of the bandwidth and {plan.compute_efficiency:.0%} of the rate"
    lines = [
        f"Predicted from shapes ({what}{'' if plan.is_floor else shares}), not measured:",
        f"{'batch':>9}{'context':>9}{'step ms':>10}{'tokens/s':>10}",
    ]
    lines += [
        f"{p.batch:>9}{p.context_len:>9,}{_short(p.step_ms):>10}{_short(p.tokens_per_s):>10}" for p in plan.decode
    ]
    lines += [
        f"{'prompt':>9}{'TTFT ms':>10}",
        *(f"{p.num_prompt_tokens:>9,}{_short(p.ttft_ms):>10}" for p in plan.prompts),
    ]
    return lines


def _short(number: float) -> str:
    """Three digits at least, thousands apart."""
    return f"{number:,.{0 if number >= 100 else 1 if number >= 10 else 2}f}"


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} billion" if number >= 1e9 else f"{number / 1e6:.2f} million"
