"""Serving while the smaller steps are still being compiled: the same tokens, and no compilation anybody waits for."""

import time

import pytest
from engine_driver import Driver, TieJudge, Wish, make_engine

from jaxserve.core.params import SamplingParams

WISHES = [
    Wish(list(range(5, 60)), SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)),
    Wish([7, 8, 9], SamplingParams(temperature=0.9, top_p=0.9, seed=3, max_tokens=8, ignore_eos=True)),
    Wish([9, 100], SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True), arrives=3),
]


@pytest.fixture(scope="module")
def core(tiny_checkpoint):
    core = make_engine(
        tiny_checkpoint, max_num_batched_tokens=128, compile_in_background=True, compilation_cache_dir="off"
    )
    yield core
    core.close()


def test_tokens_are_the_same_before_and_after_the_rest_is_there(core):
    assert core.info.num_pending_programs > 0
    judge, driver = TieJudge(core), Driver(core)
    ready = core.runner._steps.ready
    early = driver.run(WISHES)
    assert set(ready.all) < set(core.runner._steps.grid.all)
    deadline_s = time.monotonic() + 120
    while core.stats().num_pending_programs:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    assert core.runner._steps.ready == core.runner._steps.grid
    core.scheduler.reset_prefix_cache()
    late = driver.run(WISHES)
    for wish, one, other in zip(WISHES, early, late, strict=True):
        judge.assert_same(wish, one.token_ids, other.token_ids)
    assert judge.num_ties <= 1
    assert core.stats().num_compilations_after_warmup == 0
    assert core._maker.failed == []
