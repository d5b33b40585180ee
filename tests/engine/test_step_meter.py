"""The meter inside a real engine: what it counts agrees with what was asked of the engine."""

from pathlib import Path

import pytest
from engine_driver import Driver, Wish, make_engine

from jaxserve.core.errors import ConfigError
from jaxserve.core.params import SamplingParams
from jaxserve.engine.messages import AddRequest
from jaxserve.engine.step_figures import figures_between
from jaxserve.runner.memory import num_matrix_parameters
from jaxserve.runner.model_runner import StepFailedError


def test_steps_are_metered(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Against a device a million times slower every step is at its floor, and this slow memory binds.
    core = make_engine(tiny_checkpoint, max_num_seqs=2, device_peaks="bandwidth=1e3,tflops=1")
    assert (core.info.peak_bandwidth, core.info.peak_flops) == (1e3, 1e12)
    driver, params = Driver(core), SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    before = core.stats()
    driver.run([Wish([7] * 6, params), Wish([8] * 9, params)])
    after = core.stats()
    num_steps = after.num_steps - before.num_steps
    assert num_steps == 5
    itemsize = {"float32": 4, "bfloat16": 2}[core.info.dtype]
    weights = num_matrix_parameters(core.config.model) * itemsize
    if not core.config.model.tie_word_embeddings:  # the embedding's rows are not counted
        weights -= core.config.model.vocab_size * core.config.model.hidden_size * itemsize
    kv_bytes = after.step_write_bytes / (6 + 9 + 2 * 4)  # of a token
    seen = 6 + 9 + sum(6 + 9 + 2 * i for i in range(1, 5))
    assert after.step_read_bytes == num_steps * weights + seen * kv_bytes
    assert after.step_floor_s == pytest.approx(after.step_read_bytes / 1e3)
    assert after.step_memory_s > 0 and after.step_compute_s == after.step_host_s == after.step_unknown_s == 0
    figures = figures_between(before, after)
    assert figures is not None and (figures.num_steps, figures.verdict) == (5, "memory")

    def refuse(_: object) -> None:
        raise StepFailedError("no")

    with monkeypatch.context() as patched:
        patched.setattr(core.runner, "collect", refuse)
        core.add(AddRequest("late", [9] * 4, params, 0.0))
        assert core.step() == core.step() == [], "the second call collects the first one's step"
    assert core.stats().step_read_bytes == after.step_read_bytes
    while core.has_work:
        core.step()
    assert core.stats().num_steps == after.num_steps + 5
    assert core.stats().step_read_bytes > after.step_read_bytes


def test_peaks_must_mean_something(tiny_checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match=r"device_peaks='b1000'.*unknown"):
        make_engine(tiny_checkpoint, device_peaks="b1000")
