"""The openai Python SDK, unmodified, against a real server."""

import asyncio
from typing import Any

import httpx
import openai
import pytest
from server_process import ServerProcess

PROMPT = "The quick brown fox"
CHAT: list[Any] = [{"role": "user", "content": "Say something."}]
GREEDY: dict[str, Any] = {"model": "tiny", "temperature": 0.0}


def test_completion_reports_text_reason_and_usage(client: openai.OpenAI, http: httpx.Client) -> None:
    answer = client.completions.create(prompt=PROMPT, max_tokens=12, extra_body={"ignore_eos": True}, **GREEDY)
    num_prompt = http.post("/tokenize", json={"prompt": PROMPT}).json()["count"]
    assert answer.object == "text_completion"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (num_prompt, 12)
    assert answer.usage.total_tokens == num_prompt + 12


def test_stream_joined_equals_whole(client: openai.OpenAI) -> None:
    whole = client.completions.create(prompt=PROMPT, max_tokens=24, **GREEDY)
    chunks = list(client.completions.create(prompt=PROMPT, max_tokens=24, stream=True, **GREEDY))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert len({chunk.id for chunk in chunks}) == 1


def test_prompts_as_text_ids_and_lists_agree(client: openai.OpenAI, http: httpx.Client) -> None:
    ids = http.post("/tokenize", json={"prompt": PROMPT}).json()["tokens"]
    other = http.post("/tokenize", json={"prompt": "Other"}).json()["tokens"]
    text = client.completions.create(prompt=PROMPT, max_tokens=8, **GREEDY).choices[0].text
    assert client.completions.create(prompt=ids, max_tokens=8, **GREEDY).choices[0].text == text
    for many in ([PROMPT, "Other", PROMPT], [ids, other, ids]):
        choices = client.completions.create(prompt=many, max_tokens=8, **GREEDY).choices
        assert [choice.index for choice in choices] == [0, 1, 2]
        assert choices[0].text == choices[2].text == text


def test_n_samples_are_seeded_and_streamed_alike(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "max_tokens": 10, "n": 3, "seed": 7, "temperature": 1.0}
    whole = [choice.text for choice in client.completions.create(**asked).choices]
    streamed = ["", "", ""]
    for chunk in client.completions.create(stream=True, **asked):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == whole
    assert len(set(whole)) > 1


def test_usage_chunk_comes_last_and_counts_all_samples(client: openai.OpenAI) -> None:
    chunks = list(
        client.completions.create(
            model="tiny",
            prompt=PROMPT,
            n=3,
            max_tokens=5,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
    )
    assert chunks[-1].choices == []
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 15


def test_continuous_usage_grows(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(client.completions.create(prompt=PROMPT, max_tokens=6, stream=True, stream_options=options, **GREEDY))
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage is not None]
    assert len(counts) == len(chunks)
    assert counts == sorted(counts)


@pytest.mark.parametrize("stream", [False, True])
def test_echo_with_logprobs_scores_the_prompt(client: openai.OpenAI, http: httpx.Client, stream: bool) -> None:
    """The pattern of lm-eval: first entry null, one generated token at the end, equal floats in both places."""
    ids = http.post("/tokenize", json={"prompt": PROMPT}).json()["tokens"]
    asked: dict[str, Any] = {"prompt": [ids], "max_tokens": 1, "logprobs": 1, "echo": True, "seed": 1234, **GREEDY}
    answers = list(client.completions.create(stream=True, **asked)) if stream else [client.completions.create(**asked)]
    assert len(answers) == 1
    choice = answers[0].choices[0]
    scores = choice.logprobs
    assert scores is not None
    assert scores.token_logprobs is not None
    assert scores.tokens is not None
    assert scores.top_logprobs is not None
    assert scores.text_offset is not None
    assert len(scores.tokens) == len(scores.token_logprobs) == len(scores.top_logprobs) == len(ids) + 1
    assert scores.token_logprobs[0] is None
    assert scores.top_logprobs[0] is None
    assert "".join(scores.tokens[: len(ids)]) == choice.text[: scores.text_offset[-1]]
    assert scores.text_offset == sorted(scores.text_offset)
    for logprob, top in zip(scores.token_logprobs[1:], scores.top_logprobs[1:], strict=True):
        assert logprob <= max(top.values()) <= 0.0
    assert scores.token_logprobs[-1] == max(scores.top_logprobs[-1].values())  # it was chosen greedily


def test_scoring_is_the_same_with_more_alternatives_and_without_output(client: openai.OpenAI) -> None:
    one = client.completions.create(prompt=PROMPT, max_tokens=1, logprobs=1, echo=True, **GREEDY).choices[0]
    none = client.completions.create(prompt=PROMPT, max_tokens=0, logprobs=3, echo=True, **GREEDY).choices[0]
    assert one.logprobs is not None
    assert none.logprobs is not None
    assert one.logprobs.token_logprobs is not None
    assert none.logprobs.token_logprobs == pytest.approx(one.logprobs.token_logprobs[:-1], abs=1e-5)
    assert none.text == PROMPT


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("logprobs", [None, 2])
@pytest.mark.parametrize("as_ids", [False, True])
def test_streamed_samples_equal_whole_ones(
    client: openai.OpenAI, http: httpx.Client, echo: bool, logprobs: int | None, as_ids: bool
) -> None:
    prompt = http.post("/tokenize", json={"prompt": PROMPT}).json()["tokens"] if as_ids else PROMPT
    asked: dict[str, Any] = {
        "model": "tiny",
        "prompt": prompt,
        "max_tokens": 6,
        "n": 2,
        "seed": 3,
        "echo": echo,
        "logprobs": logprobs,
    }
    whole = client.completions.create(**asked).choices
    texts, offsets, tokens = ["", ""], [[], []], [[], []]
    for chunk in client.completions.create(stream=True, **asked):
        choice = chunk.choices[0]
        texts[choice.index] += choice.text
        if choice.logprobs is not None:
            offsets[choice.index] += choice.logprobs.text_offset or []
            tokens[choice.index] += choice.logprobs.tokens or []
    assert texts == [choice.text for choice in whole]
    if logprobs is not None:
        assert [choice.logprobs.tokens for choice in whole if choice.logprobs] == tokens
        assert [choice.logprobs.text_offset for choice in whole if choice.logprobs] == offsets


def test_chat_whole_and_streamed(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(messages=CHAT, max_completion_tokens=10, max_tokens=3, **GREEDY)
    assert whole.choices[0].message.role == "assistant"
    assert whole.usage is not None
    assert 3 < whole.usage.completion_tokens <= 10, "max_completion_tokens wins over max_tokens"
    chunks = list(client.chat.completions.create(messages=CHAT, max_completion_tokens=10, stream=True, **GREEDY))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_chat_logprobs_carry_bytes(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(messages=CHAT, max_tokens=4, logprobs=True, top_logprobs=3, **GREEDY)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content
    for entry in logprobs.content:
        assert len(entry.top_logprobs) == 3
        assert entry.logprob == max(top.logprob for top in entry.top_logprobs)
        assert bytes(entry.bytes or []).decode("utf-8", "replace") == entry.token


def test_chat_is_the_completion_of_its_rendered_prompt(client: openai.OpenAI, http: httpx.Client) -> None:
    ids = http.post("/tokenize", json={"messages": CHAT}).json()["tokens"]
    chat = client.chat.completions.create(messages=CHAT, max_tokens=8, **GREEDY)
    plain = client.completions.create(prompt=ids, max_tokens=8, **GREEDY)
    assert chat.choices[0].message.content == plain.choices[0].text


def test_content_parts_equal_plain_text(client: openai.OpenAI) -> None:
    parts: list[Any] = [{"role": "user", "content": [{"type": "text", "text": "Say something."}]}]
    plain = client.chat.completions.create(messages=CHAT, max_tokens=8, **GREEDY)
    assert client.chat.completions.create(messages=parts, max_tokens=8, **GREEDY).choices == plain.choices


def test_continue_final_message(client: openai.OpenAI) -> None:
    messages: list[Any] = [*CHAT, {"role": "assistant", "content": "Well"}]
    extra = {"continue_final_message": True, "add_generation_prompt": False, "echo": True}
    answer = client.chat.completions.create(messages=messages, max_tokens=4, extra_body=extra, **GREEDY)
    assert (answer.choices[0].message.content or "").startswith("Well")


def test_stop_strings_and_extras(client: openai.OpenAI) -> None:
    free = client.completions.create(prompt=PROMPT, max_tokens=24, **GREEDY).choices[0].text
    stop = free[4:6]
    cut = client.completions.create(prompt=PROMPT, max_tokens=24, stop=[stop], **GREEDY).choices[0]
    assert cut.text == free[: free.index(stop)]
    assert cut.finish_reason == "stop"
    assert cut.model_dump()["stop_reason"] == stop
    kept = client.completions.create(
        prompt=PROMPT, max_tokens=24, stop=stop, extra_body={"include_stop_str_in_output": True}, **GREEDY
    )
    assert kept.choices[0].text == free[: free.index(stop)] + stop


def test_vllm_extras_shape_the_answer(client: openai.OpenAI) -> None:
    extra = {"allowed_token_ids": [72, 73], "return_token_ids": True, "prompt_logprobs": 1, "min_p": 0.1, "top_k": 5}
    answer = (
        client.completions.create(model="tiny", prompt=PROMPT, max_tokens=5, extra_body=extra).choices[0].model_dump()
    )
    assert set(answer["token_ids"]) <= {72, 73}
    assert len(answer["prompt_logprobs"]) == len(answer["prompt_token_ids"])
    assert answer["prompt_logprobs"][0] is None
    forced = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=3, logit_bias={"70": 100}, temperature=0)
    assert len(set(forced.choices[0].text)) == 1


def test_nulls_are_absent_fields(http: httpx.Client) -> None:
    names = [
        "logprobs",
        "seed",
        "stop",
        "suffix",
        "tools",
        "n",
        "temperature",
        "stream",
        "stream_options",
        "user",
        "best_of",
    ]
    body = {"model": "tiny", "prompt": [PROMPT], "max_tokens": 2, **dict.fromkeys(names)}
    assert http.post("/v1/completions", json=body).raise_for_status().json()["usage"]["completion_tokens"] <= 2


def test_cached_tokens_are_reported(client: openai.OpenAI) -> None:
    prompt = "a prompt of its own, long enough to fill a few pages of the pool " * 2
    for expected in (False, True):
        usage = client.completions.create(prompt=prompt, max_tokens=1, **GREEDY).usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        assert bool(usage.prompt_tokens_details.cached_tokens) is expected
    salted = client.completions.create(prompt=prompt, max_tokens=1, extra_body={"cache_salt": "mine"}, **GREEDY).usage
    assert salted is not None
    assert salted.prompt_tokens_details is not None
    assert salted.prompt_tokens_details.cached_tokens == 0


def test_models_and_version(client: openai.OpenAI, http: httpx.Client) -> None:
    card = client.models.list().data[0].model_dump()
    assert card["id"] == "tiny"
    assert card["max_model_len"] == 256
    assert client.models.retrieve("tiny").id == "tiny"
    assert set(http.get("/version").json()) == {"version"}
    info = http.get("/server_info").json()
    assert info["served_model_name"] == "tiny"
    assert (info["max_model_len"], info["data_parallel_size"], info["default_sampling"]) == (256, 1, {})
    assert http.head("/metrics").status_code == 200


def test_tokenize_and_detokenize_are_inverse(http: httpx.Client) -> None:
    text = "Ünïcode 🦊 text"
    answer = http.post(
        "/tokenize", json={"prompt": text, "add_special_tokens": False, "return_token_strs": True}
    ).json()
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    assert http.post("/detokenize", json={"tokens": answer["tokens"]}).json() == {"prompt": text}


def _request(index: int) -> dict[str, Any]:
    request: dict[str, Any] = {
        "model": "tiny",
        "prompt": f"Story {index}: " + "once upon a time " * (index % 5),
        "max_tokens": 4 + index % 13,
        "seed": index,
        "temperature": 0.0 if index % 3 == 0 else 1.0,
    }
    if index % 4 == 1:
        request |= {"logprobs": 2}
    if index % 5 == 1:
        request |= {"frequency_penalty": 0.5}
    return request


async def _text(client: openai.AsyncOpenAI, index: int, stream: bool) -> str:
    if stream:
        chunks = await client.completions.create(stream=True, **_request(index))
        return "".join([chunk.choices[0].text async for chunk in chunks])
    return (await client.completions.create(**_request(index))).choices[0].text


async def test_64_clients_get_what_each_gets_alone(server: ServerProcess) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=120) as client:
        alone = [await _text(client, index, stream=False) for index in range(64)]
        crowd = await asyncio.gather(*(_text(client, index, stream=index % 2 == 0) for index in range(64)))
    assert crowd == alone
