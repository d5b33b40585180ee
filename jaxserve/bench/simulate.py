"""What a model's step over several devices would take: compiled for devices that are not there, and added up.

The least time of one device's share (`runner/roofline.py`, at a stated share of the peaks) and the compiled program's
own collectives over links of stated speed (`link_model.py`), one after the other. A prediction, and called so.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxserve.bench.link_model import Links, collectives_of
from jaxserve.bench.step_case import Case
from jaxserve.core.config import EngineArgs, EngineConfig, ModelConfig
from jaxserve.core.errors import ConfigError
from jaxserve.models.shard import shard_of
from jaxserve.models.weights import abstract_params
from jaxserve.plan import planned_device
from jaxserve.runner.layout import Layout
from jaxserve.runner.lowering import compiler_options, lower_step
from jaxserve.runner.programs import state_shapes
from jaxserve.runner.resolve import resolve
from jaxserve.runner.roofline import Rates, decode_s, prefill_s, rates_of
from jaxserve.runner.sizes import matrix_itemsize
from sharding.mesh import MeshShape, make_mesh
from sharding.targets import known_targets, target_devices


def predict(
    engine: EngineArgs,
    model: ModelConfig,
    device: str,
    size: int,
    num_hosts: int,
    case: Case,
    share: float,
    links: Links,
) -> dict[str, Any]:
    """One kind of step over `size` devices of num_hosts hosts. share: of the device's peaks that kernels reach.

    Raises ConfigError where the model cannot be cut so or does not fit, or XLA's compiler for GPUs is not installed.
    """
    if device not in known_targets():
        raise ConfigError(f"simulate_device={device!r} is unknown; choose one of {', '.join(known_targets())}.")
    peaks, planned = planned_device(device, engine.gpu_memory_utilization)
    config = resolve(replace(engine, tensor_parallel_size=size, load_format="dummy"), model, Path(), planned)
    config = replace(config, attention_implementation="mosaic_gpu")
    found = rates_of(peaks, model.dtype)
    assert found is not None, "every target's rates are data"
    rates = Rates(found.bandwidth * share, found.flops * share)
    step_s = _floor_s(config, case, rates, matrix_itemsize(model, planned))
    collectives = collectives_of(_compiled(config, device, planned.memory_bytes, size, num_hosts, case))
    sums_s = sum(links.seconds(one, size, num_hosts) for one in collectives)
    return {
        "kind": case.kind,
        "num_tokens": case.num_rows * case.chunk,
        "length": case.length,
        "step_ms": round(1e3 * (step_s + sums_s), 4),
        "sums_ms": round(1e3 * sums_s, 4),
        "num_collectives": len(collectives),
        "collective_bytes": sum(one.num_bytes for one in collectives),
        "steps_per_s": round(1 / (step_s + sums_s), 3),
        "tokens_per_s": round(case.num_rows * case.chunk / (step_s + sums_s), 2),
        "sums_share": round(sums_s / (step_s + sums_s), 4),
    }


def _floor_s(config: EngineConfig, case: Case, rates: Rates, itemsize: int) -> float:
    """The least time of one device's share."""
    share = shard_of(config.model, config.tensor_parallel_size)
    if case.kind == "decode":
        return decode_s(share, config.pool, rates, num_rows=case.num_rows, context_len=case.length, itemsize=itemsize)
    tokens = dict(num_tokens=case.length, chunk=case.length)
    return case.num_rows * prefill_s(share, config.pool, rates, itemsize=itemsize, **tokens)


def _compiled(
    config: EngineConfig, device: str, memory_bytes: int | None, size: int, num_hosts: int, case: Case
) -> str:
    """The program that such devices would run, as text."""
    try:
        devices = target_devices(
            device, num_hosts=num_hosts, devices_per_host=size // num_hosts, memory_bytes=memory_bytes
        )
    except RuntimeError as error:
        raise ConfigError(f"simulate: {error}.") from error
    layout = Layout(make_mesh(MeshShape(tensor=size), devices))
    loaded = abstract_params(config.model, layout.shards)
    state = state_shapes(config, layout, has_kv_scales=False)
    bucket = case.bucket(config)
    lowered = lower_step(config, loaded, bucket, state, layout=layout)
    return lowered.compile(compiler_options("gpu", bucket.num_tokens)).as_text() or ""
