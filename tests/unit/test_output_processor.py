"""OutputProcessor: every request gets the right news and exactly one last word."""

import pytest
from text_tokenizers import byte_level

from jaxserve.core.errors import RequestError
from jaxserve.core.outputs import EngineOutput, FinishReason, RequestOutput, TokenLogprobs
from jaxserve.core.params import RequestOutputKind, SamplingParams
from jaxserve.engine.output_processor import OutputProcessor, Processed

DELTA, CUMULATIVE, FINAL = RequestOutputKind.DELTA, RequestOutputKind.CUMULATIVE, RequestOutputKind.FINAL_ONLY
PROMPT = byte_level().encode("say")
TOKENS = byte_level().encode("hello 👍 end", add_special_tokens=False)
STOP, LENGTH, ABORT, ERROR = FinishReason.STOP, FinishReason.LENGTH, FinishReason.ABORT, FinishReason.ERROR


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def started(params: SamplingParams, request_id: str = "r", clock: Clock | None = None) -> OutputProcessor:
    processor = OutputProcessor(byte_level(), clock or Clock())
    processor.add(request_id, "say", PROMPT, params, 99.0)
    return processor


def step(processor: OutputProcessor, *outputs: EngineOutput) -> Processed:
    return processor.process(outputs)


def feed(
    processor: OutputProcessor, ids: list[int], reason: FinishReason = LENGTH
) -> tuple[list[RequestOutput], list[str]]:
    """One token a step, the last with its reason."""
    outputs: list[RequestOutput] = []
    aborts: list[str] = []
    for index, token_id in enumerate(ids):
        done = step(processor, EngineOutput("r", [token_id], finish_reason=reason if index == len(ids) - 1 else None))
        outputs += done.request_outputs
        aborts += done.aborts
    return outputs, aborts


def logprobs(token_id: int, value: float = -0.5) -> TokenLogprobs:
    return TokenLogprobs(token_id, value, 2, [9, token_id], [-0.25, value])


def test_cumulative_delta_and_final_tell_the_same_story():
    stories = {}
    for kind in (CUMULATIVE, DELTA, FINAL):
        outputs, aborts = feed(started(SamplingParams(output_kind=kind, max_tokens=50)), TOKENS)
        assert aborts == []
        assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
        assert outputs[-1].outputs[0].finish_reason == "length"
        parts = [output.outputs[0] for output in outputs]
        if kind is DELTA:
            stories[kind] = ("".join(part.text for part in parts), [t for part in parts for t in part.token_ids])
        else:
            stories[kind] = (parts[-1].text, parts[-1].token_ids)
        assert len(outputs) == (1 if kind is FINAL else len(TOKENS))
    assert set(map(str, stories.values())) == {str(("hello 👍 end", TOKENS))}


def test_cumulative_outputs_are_snapshots():
    outputs, _ = feed(started(SamplingParams(max_tokens=50)), TOKENS)
    lengths = [len(output.outputs[0].token_ids) for output in outputs]
    assert lengths == list(range(1, len(TOKENS) + 1))
    assert "\ufffd" not in "".join(output.outputs[0].text for output in outputs)


@pytest.mark.parametrize("kind", [CUMULATIVE, DELTA])
def test_stream_interval_sends_the_first_each_nth_and_the_last(kind):
    params = SamplingParams(output_kind=kind, stream_interval=4, max_tokens=50)
    outputs, _ = feed(started(params), TOKENS[:11])
    seen = [len(output.outputs[0].token_ids) for output in outputs]
    assert seen == ([1, 4, 4, 2] if kind is DELTA else [1, 5, 9, 11])


def test_stop_string_ends_the_stream_here_and_in_the_engine():
    processor = started(SamplingParams(stop=["lo 👍", "zzz"], output_kind=DELTA, max_tokens=50, logprobs=0))
    outputs, aborts = [], []
    for token_id in TOKENS:
        done = step(processor, EngineOutput("r", [token_id], logprobs=[logprobs(token_id)]))
        outputs += done.request_outputs
        aborts += done.aborts
    assert "".join(output.outputs[0].text for output in outputs) == "hel"
    last = outputs[-1].outputs[0]
    assert (last.finish_reason, last.stop_reason, outputs[-1].finished) == ("stop", "lo 👍", True)
    ids = [token_id for output in outputs for token_id in output.outputs[0].token_ids]
    entries = [entry for output in outputs for entry in output.outputs[0].logprobs or []]
    assert byte_level().decode(ids) == "hello 👍"
    assert len(entries) == len(ids)
    assert aborts == ["r"]
    assert processor.num_live == 0


def test_stop_string_kept_on_request():
    params = SamplingParams(stop="lo", include_stop_str_in_output=True, max_tokens=50)
    outputs, _ = feed(started(params), TOKENS)
    assert outputs[-1].outputs[0].text == "hello"


def test_tokens_after_the_stop_in_one_step_are_dropped():
    params = SamplingParams(stop="ll", logprobs=0, max_tokens=50)
    ids = byte_level().encode("hell", add_special_tokens=False) + byte_level().encode(" no", add_special_tokens=False)
    done = step(started(params), EngineOutput("r", ids, logprobs=[logprobs(i) for i in ids], finish_reason=LENGTH))
    (output,) = done.request_outputs
    assert output.outputs[0].text == "he"
    assert byte_level().decode(output.outputs[0].token_ids) == "hell"
    assert len(output.outputs[0].logprobs or []) == len(output.outputs[0].token_ids)
    assert (output.outputs[0].finish_reason, done.aborts) == ("stop", [])


def test_min_tokens_come_before_any_stop_string():
    ids = byte_level().encode("x" * 6, add_special_tokens=False)
    assert len(ids) == 6
    outputs, _ = feed(started(SamplingParams(stop="x", min_tokens=4, max_tokens=50)), ids)
    assert (outputs[-1].outputs[0].text, len(outputs[-1].outputs[0].token_ids)) == ("xxx", 4)


def test_text_held_for_a_stop_string_is_released_at_the_end():
    outputs, _ = feed(started(SamplingParams(stop="end!", output_kind=DELTA, max_tokens=50)), TOKENS)
    assert "".join(output.outputs[0].text for output in outputs) == "hello 👍 end"
    assert outputs[-1].outputs[0].stop_reason is None


def test_a_cut_character_shows_at_the_end_only():
    ids = byte_level().encode("a👍", add_special_tokens=False)[:-1]
    outputs, _ = feed(started(SamplingParams(output_kind=DELTA, max_tokens=50)), ids)
    assert [output.outputs[0].text for output in outputs] == ["a", "", "", "\ufffd"]


@pytest.mark.parametrize(
    ("skip", "include", "text"), [(True, False, "a"), (False, False, "a"), (False, True, "a<|end|>")]
)
def test_stop_tokens_stay_in_the_ids_but_not_in_the_text(skip, include, text):
    params = SamplingParams(skip_special_tokens=skip, include_stop_str_in_output=include)
    outputs, _ = feed(started(params), [byte_level().encode("a", False)[0], 1], STOP)
    assert outputs[-1].outputs[0].text == text
    assert outputs[-1].outputs[0].token_ids[-1] == 1
    assert outputs[-1].outputs[0].finish_reason == "stop"


def test_stop_reason_of_a_stop_token():
    processor = started(SamplingParams(stop_token_ids=[7]))
    (output,) = step(processor, EngineOutput("r", [7], finish_reason=STOP, stop_reason=7)).request_outputs
    assert (output.outputs[0].stop_reason, output.outputs[0].text) == (7, "")


@pytest.mark.parametrize("kind", [CUMULATIVE, DELTA])
def test_log_probabilities(kind):
    processor = started(SamplingParams(logprobs=2, output_kind=kind, max_tokens=50))
    token_id = TOKENS[0]
    first = step(processor, EngineOutput("r", [token_id], logprobs=[logprobs(token_id)])).request_outputs[0]
    second = step(processor, EngineOutput("r", [token_id], logprobs=[logprobs(token_id, -1.0)])).request_outputs[0]
    entry = (first.outputs[0].logprobs or [])[0]
    assert list(entry) == [token_id, 9]
    assert (entry[token_id].logprob, entry[token_id].rank, entry[token_id].decoded_token) == (
        -0.5,
        2,
        byte_level().token_text(token_id),
    )
    assert (entry[9].logprob, entry[9].rank) == (-0.25, 1)
    assert first.outputs[0].cumulative_logprob == -0.5
    assert second.outputs[0].cumulative_logprob == -1.5
    assert len(second.outputs[0].logprobs or []) == (1 if kind is DELTA else 2)


@pytest.mark.parametrize("kind", [CUMULATIVE, DELTA, FINAL])
def test_prompt_log_probabilities_are_gathered_over_chunks(kind):
    processor = OutputProcessor(byte_level(), Clock())
    processor.add("r", None, [0, 11, 12, 13], SamplingParams(prompt_logprobs=1, output_kind=kind, max_tokens=50))
    assert step(processor, EngineOutput("r", prompt_logprobs=[logprobs(11)])).request_outputs == []
    outputs = step(processor, EngineOutput("r", [20], prompt_logprobs=[logprobs(12), logprobs(13)])).request_outputs
    outputs += step(processor, EngineOutput("r", [21], finish_reason=LENGTH)).request_outputs
    told = [output.prompt_logprobs for output in outputs]
    entries = told[0]
    assert entries is not None
    assert entries[0] is None
    assert [next(iter(entry)) for entry in entries[1:] if entry] == [11, 12, 13]
    assert told[1:] == {CUMULATIVE: [entries], DELTA: [None], FINAL: []}[kind]


def test_samples_fan_out_and_in():
    processor = OutputProcessor(byte_level(), Clock())
    params = SamplingParams(n=3, seed=5, prompt_logprobs=0, output_kind=DELTA, max_tokens=50)
    streams = processor.add("r", "say", PROMPT, params, 99.0, priority=2, cache_salt="s")
    assert [stream.request_id for stream in streams] == ["r_0", "r_1", "r_2"]
    assert [(stream.params.n, stream.params.seed) for stream in streams] == [(1, 5), (1, 6), (1, 7)]
    assert [stream.params.prompt_logprobs for stream in streams] == [0, None, None]
    assert [stream.params.skip_reading_prefix_cache for stream in streams] == [True, False, False]
    assert {(stream.priority, stream.cache_salt, stream.arrival_time_s) for stream in streams} == {(2, "s", 99.0)}
    both = step(processor, EngineOutput("r_2", [30]), EngineOutput("r_0", [31], num_cached_tokens=2)).request_outputs
    assert [[(one.index, one.token_ids) for one in output.outputs] for output in both] == [[(0, [31]), (2, [30])]]
    assert both[0].num_cached_tokens == 2
    ended = step(processor, EngineOutput("r_0", [32], finish_reason=STOP)).request_outputs
    assert [(ended[0].finished, ended[0].outputs[0].finish_reason)] == [(False, "stop")]
    step(processor, EngineOutput("r_1", [33], num_cached_tokens=4, finish_reason=LENGTH))
    last = step(processor, EngineOutput("r_2", [34], finish_reason=LENGTH)).request_outputs
    assert [(output.finished, [one.index for one in output.outputs]) for output in last] == [(True, [2])]
    assert last[0].num_cached_tokens == 2
    assert processor.num_live == 0


@pytest.mark.parametrize("kind", [CUMULATIVE, FINAL])
def test_whole_outputs_hold_all_samples_in_order(kind):
    processor = started(SamplingParams(n=2, output_kind=kind, max_tokens=50))
    step(processor, EngineOutput("r_1", [30], finish_reason=LENGTH))
    (last,) = step(processor, EngineOutput("r_0", [31], finish_reason=LENGTH)).request_outputs
    assert [(one.index, one.token_ids) for one in last.outputs] == [(0, [31]), (1, [30])]


def test_ids_in_use_are_refused():
    processor = started(SamplingParams(n=2))
    for request_id in ("r", "r_0"):
        with pytest.raises(RequestError, match="in use"):
            processor.add(request_id, None, [1], SamplingParams())
    processor.add("s_1", None, [1], SamplingParams())
    with pytest.raises(RequestError, match="in use"):
        processor.add("s", None, [1], SamplingParams(n=2))
    assert sorted(processor.request_ids) == ["r", "s_1"]


@pytest.mark.parametrize("kind", [CUMULATIVE, DELTA, FINAL])
def test_abort_has_the_last_word(kind):
    processor = started(SamplingParams(n=2, output_kind=kind, stop="llz", max_tokens=50))
    step(processor, EngineOutput("r_1", [30], finish_reason=LENGTH))
    step(processor, EngineOutput("r_0", byte_level().encode("hell", False)))
    engine_ids, outputs = processor.abort(["unknown", "r", "r"])
    assert engine_ids == ["r_0"]
    assert [output.finished for output in outputs] == [True]
    reasons = {one.index: one.finish_reason for one in outputs[0].outputs}
    assert reasons == ({0: "abort"} if kind is DELTA else {0: "abort", 1: "length"})
    assert outputs[0].outputs[0].text == ("ll" if kind is DELTA else "hell")
    late = step(processor, EngineOutput("r_0", [5]), EngineOutput("r_0", finish_reason=ABORT))
    assert late == Processed()


def test_the_end_of_an_aborted_stream_does_not_touch_its_successor():
    processor = started(SamplingParams(max_tokens=50))
    processor.abort(["r"])
    processor.add("r", None, PROMPT, SamplingParams(max_tokens=50))
    assert step(processor, EngineOutput("r", [8]), EngineOutput("r", finish_reason=ABORT)) == Processed()
    (output,) = step(processor, EngineOutput("r", [9])).request_outputs
    assert (output.finished, output.outputs[0].token_ids) == (False, [9])


def test_an_engine_error_reaches_the_request():
    processor = started(SamplingParams(output_kind=FINAL))
    news = EngineOutput("r", finish_reason=ERROR, error="NaN in the logits", error_kind="EngineError")
    (output,) = step(processor, news).request_outputs
    assert (output.finished, output.outputs[0].finish_reason) == (True, "error")
    assert (output.error, output.error_kind) == ("NaN in the logits", "EngineError")


def test_a_dead_engine_ends_everything_once():
    processor = started(SamplingParams(max_tokens=50))
    processor.add("b", None, PROMPT, SamplingParams(n=2, output_kind=FINAL, max_tokens=50))
    step(processor, EngineOutput("b_0", [30], finish_reason=LENGTH))
    outputs = processor.fail_all("the engine died", "EngineDead")
    assert [(output.request_id, output.finished, output.error) for output in outputs] == [
        ("r", True, "the engine died"),
        ("b", True, "the engine died"),
    ]
    assert [one.finish_reason for one in outputs[1].outputs] == ["length", "error"]
    assert processor.fail_all("again") == []
    assert processor.abort(["r", "b"]) == ([], [])


def test_forget_leaves_no_trace():
    processor = started(SamplingParams(n=2))
    processor.forget("r")
    processor.forget("r")
    processor.add("r", None, PROMPT, SamplingParams(n=2))
    assert step(processor, EngineOutput("r_0", [4])).request_outputs


def test_without_detokenizing_there_are_ids_only():
    for processor, params in [
        (OutputProcessor(byte_level(), Clock()), SamplingParams(detokenize=False, logprobs=1)),
        (OutputProcessor(None, Clock()), SamplingParams(logprobs=1)),
    ]:
        processor.add("r", None, PROMPT, params)
        done = step(processor, EngineOutput("r", TOKENS, [logprobs(t) for t in TOKENS], finish_reason=LENGTH))
        (completion,) = done.request_outputs[0].outputs
        assert (completion.text, completion.token_ids) == ("", TOKENS)
        assert (completion.logprobs or [])[0][TOKENS[0]].decoded_token is None


def test_metrics():
    clock = Clock()
    processor = started(SamplingParams(max_tokens=50), clock=clock)
    clock.now = 103.0
    step(processor, EngineOutput("r", [5], queue_time_s=0.5, prefill_time_s=2.0))
    clock.now = 110.0
    (output,) = step(processor, EngineOutput("r", [6], num_preemptions=3, finish_reason=LENGTH)).request_outputs
    metrics = output.metrics
    assert metrics is not None
    assert (metrics.arrival_time_s, metrics.time_to_first_token_s, metrics.finished_time_s) == (99.0, 4.0, 110.0)
    assert (metrics.queue_time_s, metrics.prefill_time_s, metrics.num_preemptions) == (0.5, 2.0, 3)


def test_one_requests_broken_output_ends_only_that_request(caplog):
    processor = started(SamplingParams(logprobs=1, max_tokens=50))
    processor.add("b", None, PROMPT, SamplingParams(max_tokens=50))
    done = step(processor, EngineOutput("r", [5], logprobs=[]), EngineOutput("b", [6]))
    by_id = {output.request_id: output for output in done.request_outputs}
    assert (by_id["r"].finished, by_id["r"].outputs[0].finish_reason, by_id["r"].error is None) == (
        True,
        "error",
        False,
    )
    assert (by_id["b"].finished, done.aborts) == (False, ["r"])
    assert "could not be processed" in caplog.text
