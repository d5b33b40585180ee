"""Steps of a model cut over a mesh: run back to back with random weights, and the sums of one of them by themselves."""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxserve.batch.buckets import Bucket, BucketGrid
from jaxserve.bench.step_case import Case
from jaxserve.core.config import EngineArgs, EngineConfig
from jaxserve.core.errors import ConfigError
from jaxserve.models.weights import abstract_params, load_params, widened
from jaxserve.runner.compiling import compile_program
from jaxserve.runner.device import Device
from jaxserve.runner.layout import EVERYWHERE, Layout
from jaxserve.runner.programs import programs_of, state_shapes
from jaxserve.runner.startup import configure, keeps_wide
from jaxserve.runner.step import DeviceState
from sharding.mesh import MeshShape, make_mesh


@dataclass(frozen=True, slots=True)
class Timed:
    """A kind of step on a mesh. tokens: of one step. sums_ms: of its sums over devices, run by themselves."""

    kind: str
    num_tokens: int
    length: int
    step_ms: float
    sums_ms: float

    @property
    def tokens_per_s(self) -> float:
        return 1e3 * self.num_tokens / self.step_ms

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {
            "steps_per_s": round(1e3 / self.step_ms, 3),
            "tokens_per_s": round(self.tokens_per_s, 2),
            "sums_share": round(self.sums_ms / self.step_ms, 4),
        }


def mesh_layout(size: int) -> Layout:
    """A layout over `size` devices, as many of each process. Raises ConfigError where that cannot be."""
    hosts = jax.process_count()
    by_host = [[one for one in jax.devices() if one.process_index == host] for host in range(hosts)]
    if size % hosts or any(len(devices) < size // hosts for devices in by_host):
        raise ConfigError(
            f"tensor_parallel_sizes: {size} devices cannot be had in equal parts of {hosts} processes with "
            f"{', '.join(str(len(devices)) for devices in by_host)} devices."
        )
    if size == 1:
        return Layout()
    devices = [one for each in by_host for one in each[: size // hosts]]
    return Layout(make_mesh(MeshShape(tensor=size), devices))


class MeshSteps:
    """One model over one mesh, with random weights. Every process of a group makes the same, and times together."""

    def __init__(self, engine: EngineArgs, device: Device, layout: Layout, cases: list[Case]) -> None:
        size = layout.shards.size
        config, _ = configure(replace(engine, tensor_parallel_size=size, load_format="dummy"), device, lambda _: None)
        self.config, self._layout = _with_room(config, cases), layout
        self._loaded = load_params(config.model, Path(config.model_path), "dummy", 0, layout.shards, layout.place)
        shapes = abstract_params(config.model, layout.shards)
        if keeps_wide(config.model, device):
            self._loaded, shapes = widened(self._loaded), widened(shapes)
        state = state_shapes(self.config, layout, has_kv_scales=False)
        self._buckets = {case: case.bucket(self.config) for case in cases}
        grid = BucketGrid((), tuple(set(self._buckets.values())))
        programs = programs_of(self.config, shapes, state, grid, halves=False, layout=layout)
        wanted = [one for one in programs if one.name.startswith("step") or one.name == "initial_state"]
        self._programs = {one.name: compile_program(one) for one in wanted}
        self._state: DeviceState = self._programs["initial_state"](None)

    def time(self, case: Case, num_steps: int, num_iters: int) -> Timed:
        """The median of num_iters runs of num_steps steps; the first run is not counted."""
        vector, pages = case.packed(self.config)
        table = np.zeros(self._state.paged.page_table_RM.shape, np.int32)
        table[: pages.shape[0], : pages.shape[1]] = pages
        places = self._layout.place(("embed", "embed"), table.shape, lambda _: table)
        self._state = replace(self._state, paged=replace(self._state.paged, page_table_RM=places))
        bucket = self._buckets[case]
        step = self._programs[f"step-{bucket.num_tokens}x{bucket.num_rows}"]

        def run() -> None:
            _, self._state = step(self._loaded.leaves, self._state, vector)
            if self._layout.waits:
                jax.block_until_ready(self._state)

        def end() -> None:
            jax.block_until_ready(self._state)

        step_ms = _median_ms(run, end, num_steps, num_iters)
        num_tokens = case.num_rows * case.chunk
        return Timed(case.kind, num_tokens, case.length, step_ms, self._sums_ms(bucket, num_steps, num_iters))

    def _sums_ms(self, bucket: Bucket, num_steps: int, num_iters: int) -> float:
        """A step's sums over the devices, one after another: two a layer and the embedding's."""
        model, shards = self.config.model, self._layout.shards
        if shards.axis is None:
            return 0.0

        def sums(hidden_TD: Array) -> Array:
            for _ in range(2 * model.num_layers + 1):
                hidden_TD = shards.sum(hidden_TD) / shards.size  # as large as before: nothing may overflow
            return hidden_TD

        shape, dtype = (bucket.num_tokens, model.hidden_size), jnp.dtype(model.dtype)
        hidden_TD = self._layout.place(("embed", "embed"), shape, lambda _: np.ones(shape, dtype))
        jitted = self._layout.jit(sums, (EVERYWHERE,), EVERYWHERE, donated=0)
        compiled: Any = jitted.lower(jax.ShapeDtypeStruct(shape, dtype, sharding=hidden_TD.sharding)).compile()
        held = [hidden_TD]

        def run() -> None:
            held[0] = compiled(held[0])
            if self._layout.waits:
                jax.block_until_ready(held[0])

        return _median_ms(run, lambda: jax.block_until_ready(held[0]), num_steps, num_iters)


def num_hosts_of(layout: Layout) -> int:
    return len({device.process_index for device in layout.devices})


def _with_room(config: EngineConfig, cases: list[Case]) -> EngineConfig:
    """With the fewest pages that the largest case needs. Raises ConfigError where the pool has not as many."""
    needed = max(case.num_rows * -(-case.length // config.cache.page_size) for case in cases)
    if needed > config.cache.num_pages:
        raise ConfigError(
            f"batch_size and context_len need {needed} pages of the KV pool, which has {config.cache.num_pages}: "
            "lower one of them."
        )
    return replace(config, cache=replace(config.cache, num_pages=needed))


def _median_ms(run: Any, end: Any, num_steps: int, num_iters: int) -> float:
    times: list[float] = []
    for _ in range(num_iters + 1):
        started = time.perf_counter()
        for _ in range(num_steps):
            run()
        end()
        times.append((time.perf_counter() - started) / num_steps * 1e3)
    return round(sorted(times[1:])[num_iters // 2], 4)
