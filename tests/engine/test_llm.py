"""LLM: order, errors, streams, Ctrl-C, and that nothing stays behind."""

import gc
import os
import signal
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from engines import small_args

from jaxserve import LLM, SamplingParams
from jaxserve.core.errors import ConfigError, EngineDead, RequestError
from jaxserve.core.params import RequestOutputKind
from jaxserve.engine.client import InlineClient

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
PROMPTS = ["hello", "a longer prompt of several words", "x", "the fourth", "number five", "six and a half"]


@pytest.fixture(scope="module")
def llm(tiny_checkpoint: Path) -> Iterator[LLM]:
    with LLM(**small_args(tiny_checkpoint)) as engine:
        yield engine


def is_clean(llm: LLM) -> bool:
    stats = llm.stats()
    return (stats.num_running, stats.num_waiting, stats.num_used_pages) == (0, 0, 0)


def test_outputs_keep_the_order_of_prompts_and_params(llm: LLM) -> None:
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in (9, 1, 5, 2, 12, 3)]
    outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    assert [output.prompt for output in outputs] == PROMPTS
    assert [len(output.outputs[0].token_ids) for output in outputs] == [9, 1, 5, 2, 12, 3]
    assert all(output.finished and output.outputs[0].finish_reason == "length" for output in outputs)
    assert is_clean(llm)


def test_every_form_of_prompt_gives_the_same_tokens(llm: LLM) -> None:
    ids = llm.get_tokenizer().encode("hello")
    forms = ["hello", ids, {"prompt": "hello"}, {"prompt_token_ids": ids}]
    alone = [llm.generate(form, GREEDY, use_tqdm=False)[0].outputs[0].token_ids for form in forms]
    together = [output.outputs[0].token_ids for output in llm.generate(forms, GREEDY, use_tqdm=False)]
    assert alone == together == [alone[0]] * 4
    assert llm.generate([], GREEDY, use_tqdm=False) == []


def test_an_invalid_prompt_stops_the_list_before_any_work(llm: LLM) -> None:
    steps = llm.stats().num_steps
    with pytest.raises(RequestError, match=r"prompts\[1\]"):
        llm.generate(["fine", {"prompt_token_ids": [10**6]}, "fine"], GREEDY, use_tqdm=False)
    with pytest.raises(RequestError, match="2 entries for 3 prompts"):
        llm.generate(["a", "b", "c"], [GREEDY, GREEDY], use_tqdm=False)
    with pytest.raises(RequestError):
        llm.stream("x" * 4000, GREEDY)
    assert llm.stats().num_steps == steps
    assert is_clean(llm)


def test_a_stream_grows_to_what_generate_gives(llm: LLM) -> None:
    whole = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    grown: dict[int, list[str]] = {}
    last = {}
    for output in llm.stream(PROMPTS, GREEDY):
        grown.setdefault(int(output.request_id), []).append(output.outputs[0].text)
        last[int(output.request_id)] = output
    for index, output in enumerate(whole):
        assert len(grown[index]) > 1
        assert all(later.startswith(earlier) for earlier, later in zip(grown[index], grown[index][1:], strict=False))
        assert last[index].outputs[0].token_ids == output.outputs[0].token_ids
        assert last[index].outputs[0].text == output.outputs[0].text
        assert last[index].finished


def test_deltas_join_to_the_whole_text(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, output_kind=RequestOutputKind.DELTA)
    whole = llm.generate("hello", GREEDY, use_tqdm=False)[0].outputs[0]
    deltas = [output.outputs[0] for output in llm.stream("hello", params)]
    assert "".join(delta.text for delta in deltas) == whole.text
    assert [token for delta in deltas for token in delta.token_ids] == whole.token_ids


def test_leaving_a_stream_early_aborts_it(llm: LLM) -> None:
    stream = llm.stream("hello", SamplingParams(temperature=0, max_tokens=100, ignore_eos=True))
    next(stream)
    assert not is_clean(llm)
    stream.close()
    assert is_clean(llm)


def test_generate_while_a_stream_is_open(llm: LLM) -> None:
    whole = llm.generate("hello", GREEDY, use_tqdm=False)[0].outputs[0].token_ids
    stream = llm.stream("hello", GREEDY)
    first = next(stream)
    assert llm.generate("hello", GREEDY, use_tqdm=False)[0].outputs[0].token_ids == whole
    last = list(stream)[-1]
    assert first.outputs[0].token_ids == whole[: len(first.outputs[0].token_ids)]
    assert last.outputs[0].token_ids == whole


def test_samples_come_back_in_one_output(llm: LLM) -> None:
    params = SamplingParams(n=3, seed=7, max_tokens=6, ignore_eos=True)
    first, again = (llm.generate("hello", params, use_tqdm=False)[0] for _ in range(2))
    assert [one.index for one in first.outputs] == [0, 1, 2]
    assert len({tuple(one.token_ids) for one in first.outputs}) > 1
    assert [one.token_ids for one in first.outputs] == [one.token_ids for one in again.outputs]


def test_chat_renders_the_template_and_takes_several_conversations(llm: LLM) -> None:
    conversation = [{"role": "user", "content": "hi"}]
    one = llm.chat(conversation, GREEDY, use_tqdm=False)
    two = llm.chat([conversation, conversation], GREEDY, use_tqdm=False)
    assert one[0].prompt == "<|begin|><|user|>hi<|end|><|assistant|>"
    assert one[0].prompt_token_ids.count(0) == 1  # the template's own BOS, no second one
    assert [output.outputs[0].token_ids for output in two] == [one[0].outputs[0].token_ids] * 2
    with pytest.raises(RequestError):
        llm.chat([{"role": "nobody", "content": "hi"}], GREEDY, use_tqdm=False)


def test_ctrl_c_aborts_everything_and_the_engine_goes_on(llm: LLM) -> None:
    before = llm.generate("hello", GREEDY, use_tqdm=False)[0].outputs[0].token_ids
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    many = PROMPTS * 40  # far more work than 50 ms
    with pytest.raises(KeyboardInterrupt):
        llm.generate(many, SamplingParams(max_tokens=200, ignore_eos=True), use_tqdm=False)
    timer.join()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert is_clean(llm)
    assert llm.generate("hello", GREEDY, use_tqdm=False)[0].outputs[0].token_ids == before


def test_prefix_cache_and_metrics(llm: LLM) -> None:
    prompt = "a prompt that is long enough to fill at least one page of sixteen tokens, surely"
    assert llm.reset_prefix_cache()
    params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    cold, warm = (llm.generate(prompt, params, use_tqdm=False)[0] for _ in range(2))
    assert (cold.num_cached_tokens, warm.num_cached_tokens >= 16) == (0, True)
    assert cold.outputs[0].token_ids == warm.outputs[0].token_ids
    assert llm.get_metrics()["prefix_cache_hits"] >= 16
    assert llm.get_default_sampling_params().max_tokens == 16


def test_unknown_argument_and_missing_model_say_what_to_do() -> None:
    with pytest.raises(ConfigError, match="max_num_seqs"):
        LLM("", max_num_seq=3)
    with pytest.raises(ConfigError, match="no such directory"):
        LLM("/no/such/checkpoint")


def test_shutdown_ends_an_open_stream(tiny_checkpoint: Path) -> None:
    llm = LLM(**small_args(tiny_checkpoint))
    one, two = (llm.stream("hello", GREEDY) for _ in range(2))
    next(one)
    next(two)
    llm.shutdown()
    llm.shutdown()
    for stream in (one, two):
        with pytest.raises(EngineDead, match="shut down"):
            list(stream)
    with pytest.raises(EngineDead):
        llm.generate("hello", GREEDY, use_tqdm=False)


def test_del_frees_the_engine(tiny_checkpoint: Path) -> None:
    llm = LLM(**small_args(tiny_checkpoint))
    client = llm._client
    assert isinstance(client, InlineClient)
    assert client._core is not None
    core = weakref.ref(client._core)
    stream = llm.stream("hello", GREEDY)
    next(stream)
    del llm, stream
    gc.collect()
    assert core() is None
    with pytest.raises(EngineDead):
        client.receive()
