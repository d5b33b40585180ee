"""Every rule of SamplingParams: what is accepted, what it becomes, and what each refusal says."""

import dataclasses
import logging
from typing import Any

import msgspec
import numpy as np
import pytest

from jaxserve.core.errors import RequestError
from jaxserve.core.params import RequestOutputKind, SamplingParams

NAN, INF = float("nan"), float("inf")

# field, value, what the message must say beside the field's name
REFUSED: list[tuple[str, Any, str]] = [
    *[
        (name, value, "finite")
        for name in ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
        for value in (NAN, INF, -INF, 1e400)
    ],
    *[
        (name, value, "must be a number")
        for name in ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
        for value in (True, "0.5", None, [1.0])
    ],
    ("temperature", -0.1, "at least 0 and at most 2, got -0.1"),
    ("temperature", 2.01, "at least 0 and at most 2, got 2.01"),
    ("temperature", 10**400, "an integer of 1329 bits"),
    ("top_p", 0, "greater than 0 and at most 1, got 0"),
    ("top_p", -0.0, "greater than 0"),
    ("top_p", 1.0001, "at most 1, got 1.0001. Use 1 to keep all tokens."),
    ("min_p", -0.01, "at least 0"),
    ("min_p", 1.1, "at most 1"),
    ("presence_penalty", 2.1, "at least -2 and at most 2, got 2.1"),
    ("frequency_penalty", -2.1, "at least -2 and at most 2, got -2.1"),
    ("repetition_penalty", 0, "greater than 0"),
    ("repetition_penalty", -1, "greater than 0"),
    ("top_k", -2, "at least -1"),
    ("top_k", 1.5, "must be an integer, got 1.5"),
    ("top_k", True, "must be an integer, got True"),
    ("top_k", 2**31, "at most 2147483647"),
    ("n", 0, "at least 1 and at most 16384, got 0"),
    ("n", -1, "got -1"),
    ("n", 10**9, "at most 16384, got 1000000000"),
    ("n", True, "must be an integer, got True"),
    ("n", None, "must be an integer, got None"),
    ("n", 10**5000, "an integer of 16610 bits"),
    ("seed", 2**63, "got 9223372036854775808"),
    ("seed", -(2**63) - 1, "at least -9223372036854775808"),
    ("seed", 2**70, "an integer of 71 bits"),
    ("seed", 1.5, "must be an integer, got 1.5"),
    ("seed", "7", "a value of type str"),
    ("seed", False, "got False"),
    ("max_tokens", 0, "at least 1"),
    ("max_tokens", -1, "at least 1"),
    ("max_tokens", 2**31, "at most 2147483647"),
    ("max_tokens", 2**64, "at most 2147483647"),
    ("max_tokens", 1.0, "must be an integer, got 1.0"),
    ("min_tokens", -1, "at least 0"),
    ("min_tokens", 17, "at most max_tokens=16, got 17. Raise max_tokens or lower min_tokens."),
    ("logprobs", -2, "Use -1 for the whole vocabulary"),
    ("logprobs", True, "must be an integer, got True"),
    ("prompt_logprobs", -2, "at least -1"),
    ("prompt_logprobs", False, "got False"),
    ("stop", "", "stop[0] must not be empty"),
    ("stop", ["a", ""], "stop[1] must not be empty"),
    ("stop", [1], "stop[0] must be a string, got 1"),
    ("stop", 7, "must be a list of strings, got 7"),
    ("stop", {"a": 1}, "a value of type dict"),
    ("stop", "x" * 2**20, "has 1048576 characters; at most 4096"),
    ("stop_token_ids", [1, -1], "stop_token_ids[1] must be at least 0"),
    ("stop_token_ids", [2**31], "at most 2147483647"),
    ("stop_token_ids", ["a"], "must be an integer"),
    ("stop_token_ids", [True], "got True"),
    ("stop_token_ids", 5, "must be a list of token ids, got 5"),
    ("bad_words", [""], "must not be empty"),
    ("bad_words", ["a"] * 129, "holds 129 strings; at most 128"),
    ("bad_words", "word", "must be a list of strings"),
    ("bad_words_token_ids", [[1], []], "must not hold an empty word"),
    ("bad_words_token_ids", [[1.5]], "must be an integer"),
    ("logit_bias", {"abc": 1}, "logit_bias key must be an integer"),
    ("logit_bias", {-1: 1}, "logit_bias key must be at least 0"),
    ("logit_bias", {"-1": 1}, "must be an integer"),
    ("logit_bias", {"١": 1}, "must be an integer"),
    ("logit_bias", {1.0: 1}, "must be an integer"),
    ("logit_bias", {3: NAN}, "logit_bias[3] must be a finite number, got nan"),
    ("logit_bias", {3: INF}, "finite"),
    ("logit_bias", {3: "x"}, "must be a number"),
    ("logit_bias", [1], "must map token ids to numbers"),
    ("logit_bias", dict.fromkeys(range(100_000), 1.0), "holds 100000 entries; at most 16384"),
    ("allowed_token_ids", [], "must not be empty. Use None to allow all tokens."),
    ("allowed_token_ids", [-5], "at least 0"),
    ("allowed_token_ids", "12", "must be a list of token ids"),
    ("stream_interval", 0, "at least 1"),
    ("stream_interval", True, "must be an integer"),
    ("output_kind", 3, "at most 2, got 3. Use a RequestOutputKind."),
    ("output_kind", "delta", "must be an integer"),
    *[
        (name, value, "must be true or false")
        for name in (
            "ignore_eos",
            "include_stop_str_in_output",
            "detokenize",
            "skip_special_tokens",
            "spaces_between_special_tokens",
            "skip_reading_prefix_cache",
        )
        for value in (1, "yes")
    ],
]


@pytest.mark.parametrize(("field", "value", "says"), REFUSED, ids=[f"{f}-{i}" for i, (f, _, _) in enumerate(REFUSED)])
def test_refused(field: str, value: Any, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**{field: value})
    assert caught.value.param == field
    message = str(caught.value)
    assert message.startswith(field)
    assert says in message
    assert message.endswith(".")
    assert len(message) < 250


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"temperature": -0.0}, {"temperature": 0.0}),
        ({"temperature": 2}, {"temperature": 2.0}),
        (
            {"temperature": 1e-10, "top_p": 0.5, "top_k": 5, "min_p": 0.1},
            {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0},
        ),
        ({"temperature": np.float32(0.5), "top_k": np.int64(4)}, {"temperature": 0.5, "top_k": 4}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"top_k": 10**6}, {"top_k": 10**6}),
        ({"top_p": 1}, {"top_p": 1.0}),
        ({"presence_penalty": -2, "frequency_penalty": 2}, {"presence_penalty": -2.0, "frequency_penalty": 2.0}),
        ({"repetition_penalty": 1e-300}, {"repetition_penalty": pytest.approx(1e-30)}),
        ({"seed": -1}, {"seed": None}),
        ({"seed": 2**63 - 1}, {"seed": 2**63 - 1}),
        ({"seed": -(2**63)}, {"seed": -(2**63)}),
        ({"stop": "x"}, {"stop": ["x"]}),
        ({"stop": ("x", "yz")}, {"stop": ["x", "yz"]}),
        ({"stop": None}, {"stop": []}),
        ({"stop": "x", "detokenize": True}, {"stop": ["x"]}),
        ({"stop_token_ids": {7}}, {"stop_token_ids": [7]}),
        ({"stop_token_ids": None}, {"stop_token_ids": []}),
        ({"bad_words": ["a"] * 128}, {"bad_words": ["a"] * 128}),
        ({"max_tokens": None, "min_tokens": 1000}, {"max_tokens": None, "min_tokens": 1000}),
        ({"max_tokens": 5, "min_tokens": 5}, {"min_tokens": 5}),
        (
            {"logprobs": -1, "prompt_logprobs": 0},
            {"logprobs": -1, "prompt_logprobs": 0, "skip_reading_prefix_cache": True},
        ),
        ({"prompt_logprobs": 1, "skip_reading_prefix_cache": False}, {"skip_reading_prefix_cache": False}),
        ({}, {"skip_reading_prefix_cache": False, "max_tokens": 16}),
        ({"logit_bias": {"42": 101, 7: -1000, 8: 1}}, {"logit_bias": {42: 100.0, 7: -100.0, 8: 1.0}}),
        ({"logit_bias": {}}, {"logit_bias": {}}),
        ({"allowed_token_ids": range(3)}, {"allowed_token_ids": [0, 1, 2]}),
        ({"output_kind": 1}, {"output_kind": RequestOutputKind.DELTA}),
        ({"stream_interval": 1}, {"stream_interval": 1}),
        ({"n": 16384}, {"n": 16384}),
    ],
    ids=repr,
)
def test_accepted(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    params = SamplingParams(**fields)
    for name, value in expected.items():
        assert getattr(params, name) == value
        assert type(getattr(params, name)) is type(value) or name == "repetition_penalty"


def test_stop_needs_text() -> None:
    with pytest.raises(RequestError, match=r"stop needs detokenize=True\. Use stop_token_ids") as caught:
        SamplingParams(stop="x", detokenize=False)
    assert caught.value.param == "stop"


def test_greedy_refuses_several_samples() -> None:
    with pytest.raises(RequestError, match=r"n must be 1 when sampling is greedy \(temperature 0\), got 2\.") as caught:
        SamplingParams(n=2, temperature=0)
    assert caught.value.param == "n"


def test_low_temperature_is_raised_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        params = SamplingParams(temperature=0.005, top_k=3)
    assert (params.temperature, params.top_k) == (0.01, 3)
    assert "temperature 0.005 is below 0.01" in caplog.text
    caplog.clear()
    assert SamplingParams(temperature=0.01).temperature == 0.01
    assert not caplog.records


def test_removed_keywords_are_unknown() -> None:
    for name in ("best_of", "use_beam_search", "logits_processors", "guided_decoding"):
        with pytest.raises(TypeError, match=name):
            SamplingParams(**dict[str, Any]({name: None}))


def test_messages_do_not_quote_text() -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(seed="my secret")  # type: ignore[arg-type]
    assert "secret" not in str(caught.value)


FULL = SamplingParams(
    n=3,
    temperature=0.7,
    top_p=0.9,
    top_k=40,
    min_p=0.01,
    presence_penalty=0.5,
    frequency_penalty=-0.5,
    repetition_penalty=1.1,
    seed=-(2**63),
    stop=["a", "b"],
    stop_token_ids=[1],
    bad_words=["x"],
    bad_words_token_ids=[[1, 2], [3]],
    min_tokens=2,
    logprobs=5,
    prompt_logprobs=0,
    logit_bias={5: 1.5, 70000: -100},
    allowed_token_ids=[5, 70000],
    output_kind=RequestOutputKind.FINAL_ONLY,
    stream_interval=4,
)


@pytest.mark.parametrize(
    "params", [SamplingParams(), SamplingParams(temperature=0), FULL], ids=["default", "greedy", "full"]
)
def test_round_trip_between_processes(params: SamplingParams) -> None:
    data = msgspec.msgpack.encode(params)
    assert msgspec.msgpack.decode(data, type=SamplingParams) == params


def test_checking_twice_changes_nothing() -> None:
    assert dataclasses.replace(FULL) == FULL


def test_the_callers_lists_are_not_shared() -> None:
    stop, bias = ["a"], {1: 500.0}
    params = SamplingParams(stop=stop, logit_bias=bias)
    stop.append("b")
    assert params.stop == ["a"]
    assert bias == {1: 500.0}


def test_children_have_one_sample_and_their_own_seed() -> None:
    children = [SamplingParams(n=3, seed=40).for_child(i) for i in range(3)]
    assert [child.n for child in children] == [1, 1, 1]
    assert [child.seed for child in children] == [40, 41, 42]
    assert SamplingParams(n=2).for_child(1).seed is None
    assert FULL.for_child(1) == dataclasses.replace(FULL, n=1, seed=-(2**63) + 1)


@pytest.mark.parametrize("seed", [-3, -2, 2**63 - 2, 2**63 - 1])
def test_seeds_of_children_stay_valid_and_distinct(seed: int) -> None:
    seeds = [SamplingParams(n=4, seed=seed).for_child(i).seed for i in range(4)]
    assert seeds[0] == seed
    assert None not in seeds
    assert len(set(seeds)) == 4


def test_check_model_limits() -> None:
    SamplingParams(logprobs=20, logit_bias={99: 1}, allowed_token_ids=[99], stop_token_ids=[99]).check_model(100, 20)
    SamplingParams(logprobs=-1, prompt_logprobs=-1).check_model(100, -1)
    SamplingParams(logprobs=-1).check_model(100, 100)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"logprobs": 21}, "logprobs asks for 21 log probabilities a token; at most 20"),
        ({"prompt_logprobs": -1}, "prompt_logprobs asks for 100"),
        ({"logit_bias": {100: 1}}, "logit_bias holds token id 100, which is out of vocabulary"),
        ({"allowed_token_ids": [1, 2**30]}, "This model's ids are 0 to 99."),
        ({"stop_token_ids": [100]}, "out of vocabulary"),
    ],
)
def test_check_model_refuses(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**fields).check_model(100, 20)
    assert caught.value.param == next(iter(fields))
    assert says in str(caught.value)
