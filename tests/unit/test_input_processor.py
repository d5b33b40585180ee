"""InputProcessor: prompts become ids, limits are named, nobody's parameters are changed."""

import copy

import msgspec
import pytest
from text_tokenizers import byte_level, sentencepiece, wordpiece

from jaxserve.core.errors import RequestError
from jaxserve.core.params import SamplingParams
from jaxserve.engine.input_processor import InputProcessor
from jaxserve.engine.messages import EngineInfo

INFO = EngineInfo(
    model_path="m",
    architecture="LlamaForCausalLM",
    dtype="float32",
    kv_cache_dtype="float32",
    vocab_size=512,
    max_model_len=64,
    max_num_seqs=4,
    max_num_batched_tokens=64,
    max_logprobs=20,
    page_size=16,
    num_pages=16,
    eos_token_ids=[1],
    device="cpu",
    startup_s={},
)


def processor(tokenizer=None, **info) -> InputProcessor:
    return InputProcessor(tokenizer or byte_level(), msgspec.structs.replace(INFO, **info))


def refusal(prompt, params: SamplingParams | None = None, *, inputs: InputProcessor | None = None, **options):
    with pytest.raises(RequestError) as caught:
        (inputs or processor()).process(prompt, params or SamplingParams(), **options)
    return caught.value


def test_four_ways_to_say_the_same():
    ids = byte_level().encode("hello")
    for prompt in ("hello", {"prompt": "hello"}):
        text, got, _ = processor().process(prompt, SamplingParams())
        assert (text, got) == ("hello", ids)
    for prompt in (ids, tuple(ids), {"prompt_token_ids": ids}, {"prompt": None, "prompt_token_ids": ids}):
        text, got, _ = processor().process(prompt, SamplingParams())
        assert (text, got) == (None, ids)


def test_rendered_chats_get_no_second_bos():
    _, ids, _ = processor().process("<|begin|>hi", SamplingParams(), add_special_tokens=False)
    assert ids.count(0) == 1


def test_the_empty_text_is_bos_where_the_tokenizer_adds_one():
    assert processor().process("", SamplingParams())[1] == [0]
    assert "empty" in str(refusal("", add_special_tokens=False))
    assert "empty" in str(refusal("", inputs=processor(wordpiece())))


@pytest.mark.parametrize(
    "prompt",
    [
        [],
        (),
        {"prompt_token_ids": []},
        {},
        {"prompt": [1]},
        {"prompt_token_ids": "x"},
        {"prompt": "a", "prompt_token_ids": [1]},
        None,
        3,
        1.5,
        b"bytes",
        [1.0],
        ["a"],
        [None],
        [[1]],
        [True],
        {"prompt": {"prompt": "x"}},
        {1, 2},
    ],
)
def test_malformed_prompts(prompt):
    assert refusal(prompt).param == "prompt"


@pytest.mark.parametrize("token_id", [-1, 512, 2**31, 2**40, -(2**70)])
def test_ids_outside_the_vocabulary(token_id):
    assert refusal([5, token_id]).param == "prompt"


def test_a_foreign_tokenizer_is_named_not_clamped():
    assert "does not belong" in str(refusal("hello", inputs=processor(vocab_size=6)))


def test_lone_surrogates():
    assert "surrogate" in str(refusal("\udc80"))


@pytest.mark.parametrize(
    ("num_prompt", "max_tokens", "granted"), [(63, 1, 1), (63, None, 1), (60, 4, 4), (1, None, 63), (10, 16, 16)]
)
def test_lengths_that_fit(num_prompt, max_tokens, granted):
    _, ids, params = processor().process([5] * num_prompt, SamplingParams(max_tokens=max_tokens))
    assert len(ids) == num_prompt
    assert params.max_tokens == granted


@pytest.mark.parametrize(
    ("num_prompt", "max_tokens"), [(63, 2), (64, None), (64, 1), (65, None), (1000, 16), (1, 2**31 - 1)]
)
def test_lengths_that_do_not(num_prompt, max_tokens):
    error = refusal([5] * num_prompt, SamplingParams(max_tokens=max_tokens))
    assert error.code == "context_length_exceeded"
    message = str(error)
    assert "maximum context length is 64 tokens" in message
    assert str(num_prompt) in message
    if num_prompt < 64:
        assert f"{num_prompt} in the prompt, {max_tokens} in the completion" in message
        assert error.param == "max_tokens"
    else:
        assert error.param == "prompt"


def test_min_tokens_beyond_the_room():
    error = refusal([5] * 60, SamplingParams(max_tokens=None, min_tokens=5))
    assert error.param == "min_tokens"


def test_huge_text_is_refused_by_size_before_tokenizing(monkeypatch):
    inputs = processor()
    monkeypatch.setattr(inputs.tokenizer, "encode", lambda *_: pytest.fail("tokenized"))
    for text in ("a" * 20_000_000, "👩‍👩‍👧" * 100_000):
        error = refusal(text, inputs=inputs)
        assert error.code == "context_length_exceeded"
        assert str(len(text.encode())) in str(error)


def test_the_size_limit_never_refuses_what_could_fit():
    inputs = processor(max_model_len=8192)
    longest = max(range(512), key=lambda token_id: len(byte_level().token_bytes(token_id)))
    text = byte_level().token_text(longest) * 8000
    with pytest.raises(RequestError, match="maximum context") as caught:
        inputs.process(text + "x" * 100_000, SamplingParams())
    assert caught.value.code == "context_length_exceeded"
    limit = inputs.max_prompt_bytes
    assert limit is not None
    assert len(text.encode()) <= limit
    # Without a bound on a token's text, every text is tokenized and counted.
    assert processor(wordpiece()).max_prompt_bytes is None
    assert processor(wordpiece()).process("z" * 1_000_000, SamplingParams())[1] == [0]


def test_log_probabilities():
    _, _, params = processor(max_logprobs=-1).process([5], SamplingParams(logprobs=-1, prompt_logprobs=512))
    assert (params.logprobs, params.prompt_logprobs) == (512, 512)
    _, _, params = processor().process([5], SamplingParams(logprobs=20, prompt_logprobs=0))
    assert (params.logprobs, params.prompt_logprobs) == (20, 0)
    assert refusal([5], SamplingParams(logprobs=21)).param == "logprobs"
    assert refusal([5], SamplingParams(prompt_logprobs=-1)).param == "prompt_logprobs"


@pytest.mark.parametrize(
    ("field", "value"), [("logit_bias", {512: 1.0}), ("allowed_token_ids", [3, 512]), ("stop_token_ids", [2**31 - 1])]
)
def test_parameters_outside_the_vocabulary(field, value):
    assert refusal([5], SamplingParams(**{field: value})).param == field


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_bad_words_with_and_without_a_space(make):
    tokenizer = make()
    _, _, params = processor(tokenizer).process([5], SamplingParams(bad_words=["hello", " hello", "wo"]))
    sequences = params.bad_words_token_ids
    assert sequences is not None
    expected = [tokenizer.encode(text, False) for text in ("hello", " hello", "wo", " wo")]
    assert all(ids in sequences for ids in expected)
    assert len({tuple(ids) for ids in sequences}) == len(sequences)


def test_too_many_bad_words():
    error = refusal([5], SamplingParams(bad_words=[f"w{index}" for index in range(100)]))
    assert error.param == "bad_words"


def test_the_users_parameters_are_not_changed():
    params = SamplingParams(max_tokens=None, bad_words=["x"], prompt_logprobs=1, stop="a")
    before = copy.deepcopy(params)
    processor().process("hello", params)
    assert params == before


def test_without_a_tokenizer_only_ids():
    inputs = InputProcessor(None, INFO)
    assert inputs.process([5, 6], SamplingParams())[:2] == (None, [5, 6])
    assert "token ids" in str(refusal("hello", inputs=inputs))
    assert refusal([5], SamplingParams(bad_words=["x"]), inputs=inputs).param == "bad_words"
    assert refusal([5], SamplingParams(stop="x"), inputs=inputs).param == "stop"
