"""AsyncEngine over an engine thread: streams side by side, aborts, slow consumers, a second event loop."""

import asyncio
import gc
import logging
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import pytest
from engines import small_args

from jaxserve import AsyncEngine, AsyncEngineArgs, SamplingParams
from jaxserve.core.errors import EngineDead, RequestError
from jaxserve.core.outputs import RequestOutput
from jaxserve.core.params import RequestOutputKind
from jaxserve.engine.messages import Shutdown

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
LONG = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path) -> Iterator[AsyncEngine]:
    args = AsyncEngineArgs(**small_args(tiny_checkpoint, engine_process=False, max_num_queued_reqs=40))
    engine = AsyncEngine.from_engine_args(args)
    yield engine
    engine.shutdown()


async def last(engine: AsyncEngine, prompt: Any, params: SamplingParams, request_id: str) -> RequestOutput:
    outputs = [output async for output in engine.generate(prompt, params, request_id)]
    assert outputs[-1].finished
    return outputs[-1]


async def settles(engine: AsyncEngine) -> bool:
    """Whether nothing runs and no page is held, within a second."""
    for _ in range(50):
        stats = await engine.stats()
        if (stats.num_running, stats.num_waiting, stats.num_used_pages) == (0, 0, 0):
            return True
        await asyncio.sleep(0.02)
    return False


async def test_a_crowd_gets_what_each_gets_alone(engine: AsyncEngine) -> None:
    prompts = [f"prompt number {index}" for index in range(12)]
    alone = [(await last(engine, prompt, GREEDY, f"alone-{prompt}")).outputs[0] for prompt in prompts]
    crowd = await asyncio.gather(*[last(engine, prompt, GREEDY, f"crowd-{prompt}") for prompt in prompts])
    assert [output.outputs[0].token_ids for output in crowd] == [one.token_ids for one in alone]
    assert [output.outputs[0].text for output in crowd] == [one.text for one in alone]
    assert await settles(engine)


async def test_outputs_are_cumulative_and_end_once(engine: AsyncEngine) -> None:
    outputs = [output async for output in engine.generate("hello", GREEDY, "one")]
    counts = [len(output.outputs[0].token_ids) for output in outputs]
    assert counts == sorted(counts)
    assert [output.finished for output in outputs].count(True) == 1
    assert outputs[-1].finished
    assert outputs[-1].outputs[0].finish_reason == "length"


async def test_closing_and_cancelling_abort(engine: AsyncEngine) -> None:
    async with aclosing(cast(AsyncGenerator[RequestOutput], engine.generate("hello", LONG, "closed"))) as stream:
        await anext(stream)
    assert await settles(engine)
    task = asyncio.create_task(last(engine, "hello", LONG, "cancelled"))
    while not (await engine.stats()).num_active_seqs:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await settles(engine)


async def test_abort_gives_the_stream_its_last_output(engine: AsyncEngine) -> None:
    stream = engine.generate("hello", LONG, "aborted")
    await anext(stream)
    await engine.abort("aborted")
    await engine.abort("aborted")  # twice, and unknown ids: nothing happens
    await engine.abort(["never seen"])
    outputs = [output async for output in stream]
    assert outputs[-1].outputs[0].finish_reason == "abort"
    assert await settles(engine)


async def test_a_slow_reader_of_deltas_loses_nothing(engine: AsyncEngine) -> None:
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, output_kind=RequestOutputKind.DELTA)
    whole = (await last(engine, "hello", SamplingParams(temperature=0, max_tokens=40, ignore_eos=True), "w")).outputs[0]
    stream = engine.generate("hello", params, "slow")
    outputs = [await anext(stream)]
    await engine.wait_for_requests_to_drain(30)
    outputs += [output async for output in stream]
    assert len(outputs) == 2  # all that had piled up came as one
    assert [token for output in outputs for token in output.outputs[0].token_ids] == whole.token_ids
    assert "".join(output.outputs[0].text for output in outputs) == whole.text


async def test_a_stop_string_ends_the_request_in_the_engine_too(engine: AsyncEngine) -> None:
    text = (await last(engine, "hello", LONG, "free")).outputs[0].text
    stop = text[10:13]
    output = await last(
        engine, "hello", SamplingParams(temperature=0, max_tokens=200, ignore_eos=True, stop=stop), "stopped"
    )
    assert output.outputs[0].finish_reason == "stop"
    assert output.outputs[0].stop_reason == stop
    assert output.outputs[0].text == text[: text.index(stop)]
    assert await settles(engine)


async def test_errors_of_one_request_stay_its_own(engine: AsyncEngine) -> None:
    running = asyncio.create_task(last(engine, "hello", GREEDY, "good"))
    await asyncio.sleep(0)
    for prompt, params in (([10**6], GREEDY), ([], GREEDY), ("x", SamplingParams(max_tokens=10**6))):
        with pytest.raises(RequestError):
            await last(engine, prompt, params, "bad")
    with pytest.raises(RequestError, match="in use"):
        await last(engine, "hello", GREEDY, "good")
    assert (await running).finished


async def test_the_queue_limit_refuses_what_is_too_much(engine: AsyncEngine) -> None:
    tasks = [asyncio.create_task(last(engine, "hello", GREEDY, f"many-{index}")) for index in range(120)]
    results = await asyncio.gather(*tasks, return_exceptions=True)
    refused = [result for result in results if isinstance(result, BaseException)]
    assert 0 < len(refused) < 120
    assert {type(error).__name__ for error in refused} == {"QueueFull"}
    assert await settles(engine)


async def test_a_long_text_is_tokenized_beside_the_loop(engine: AsyncEngine) -> None:
    with pytest.raises(RequestError):
        await last(engine, "word " * 20_000, GREEDY, "long")


def test_another_event_loop_may_take_over(engine: AsyncEngine) -> None:
    first = asyncio.run(last(engine, "hello", GREEDY, "loop"))
    second = asyncio.run(last(engine, "hello", GREEDY, "loop"))
    assert first.outputs[0].token_ids == second.outputs[0].token_ids


async def test_what_monitoring_loops_read(engine: AsyncEngine, caplog: pytest.LogCaptureFixture) -> None:
    stats = await engine.get_model_config()
    assert stats.num_active_seqs == 0
    assert stats.gpu_memory_used <= stats.gpu_memory_total
    await engine.check_health()
    assert await engine.reset_prefix_cache()
    with caplog.at_level(logging.INFO, logger="jaxserve"):
        await engine.do_log_stats()
    assert "tokens/s" in caplog.text


async def test_shutdown_ends_streams_and_the_thread(tiny_checkpoint: Path) -> None:
    args = AsyncEngineArgs(**small_args(tiny_checkpoint, engine_process=False, enable_log_requests=True))
    num_threads = threading.active_count()
    engine = AsyncEngine.from_engine_args(args)
    stream = engine.generate("hello", LONG, "open")
    await anext(stream)
    engine.shutdown()
    engine.shutdown()
    with pytest.raises(EngineDead, match="shut down"):
        async for _ in stream:
            pass
    with pytest.raises(EngineDead):
        await engine.check_health()
    with pytest.raises(EngineDead):
        await last(engine, "hello", GREEDY, "late")
    assert threading.active_count() == num_threads


async def test_an_engine_let_go_of_ends_its_thread(tiny_checkpoint: Path) -> None:
    engine = AsyncEngine.from_engine_args(AsyncEngineArgs(**small_args(tiny_checkpoint, engine_process=False)))
    await last(engine, "hello", GREEDY, "one")
    client = engine._client
    del engine
    gc.collect()
    with pytest.raises(EngineDead):
        client.send(Shutdown())
