"""Bad input is refused by name, in one shape, and nobody else notices."""

import json
from typing import Any

import httpx
import pytest
from server_process import ServerProcess

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "hi"}
SECRET = "xyzzy-secret-prompt"


def check_error(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The error object, after checking its shape and that it tells nothing of our insides."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    for leak in ("Traceback", "/work/", "/tmp/", ".py", " at 0x", SECRET):
        assert leak not in answer.text
    return body["error"]


BAD_FIELDS: list[tuple[str, Any]] = [
    ("temperature", -0.1),
    ("temperature", 2.01),
    ("temperature", "hot"),
    ("temperature", True),
    ("top_p", 0),
    ("top_p", 1.0001),
    ("top_k", -2),
    ("min_p", 1.5),
    ("presence_penalty", 3),
    ("frequency_penalty", -3),
    ("repetition_penalty", 0),
    ("seed", 1.5),
    ("seed", 2**63),
    ("seed", 2**70),
    ("seed", -(2**63) - 1),
    ("max_tokens", 0),
    ("max_tokens", -1),
    ("max_tokens", True),
    ("max_tokens", "7"),
    ("max_tokens", 2**31),
    ("max_tokens", 2**64),
    ("max_tokens", 10**4000),
    ("min_tokens", -1),
    ("n", 0),
    ("n", -1),
    ("n", 129),
    ("n", 10**9),
    ("best_of", 2),
    ("logprobs", -1),
    ("logprobs", 21),
    ("prompt_logprobs", 21),
    ("logit_bias", {"abc": 1}),
    ("logit_bias", {"-1": 1}),
    ("logit_bias", {"512": 1}),
    ("stop", ["a", "b", "c", "d", "e"]),
    ("stop", ""),
    ("stop", [""]),
    ("stop", [1]),
    ("stop", 5),
    ("stop_token_ids", ["a"]),
    ("stop_token_ids", [-1]),
    ("stop_token_ids", [512]),
    ("allowed_token_ids", []),
    ("allowed_token_ids", [512]),
    ("bad_words", [""]),
    ("stream_options", {"include_usage": True}),
    ("response_format", {"type": "json_object"}),
    ("suffix", "end"),
    ("structured_outputs", {"regex": "a"}),
    ("priority", "high"),
    ("cache_salt", ""),
    ("cache_salt", "s" * 1025),
    ("request_id", "a\nb"),
    ("prompt", []),
    ("prompt", [[]]),
    ("prompt", [[], [1]]),
    ("prompt", [[1], "a"]),
    ("prompt", [1, "a"]),
    ("prompt", [1.5]),
    ("prompt", [True]),
    ("prompt", [-1]),
    ("prompt", [512]),
    ("prompt", [2**40]),
    ("prompt", {"a": 1}),
    ("prompt", 5),
    ("prompt", ["a"] * 1025),
]


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS, ids=lambda value: f"{value}"[:30])
def test_bad_field_is_refused_by_name(http: httpx.Client, field: str, value: Any) -> None:
    body = {"model": "tiny", "prompt": SECRET, "max_tokens": 2, field: value}
    answer = http.post(COMPLETIONS, content=_json(body), headers={"content-type": "application/json"})
    assert check_error(answer, 400)["param"] == field


def _json(body: Any) -> str:
    """Beyond json.dumps: integers of thousands of digits."""
    big = 10**4000
    if isinstance(body, dict) and big in [value for value in body.values() if isinstance(value, int)]:
        return json.dumps({key: "BIG" if value == big else value for key, value in body.items()}).replace(
            '"BIG"', "1" + "0" * 4000
        )
    return json.dumps(body)


BAD_CHATS: list[tuple[str, dict[str, Any]]] = [
    ("messages", {"messages": []}),
    ("messages", {"messages": [{"content": "no role"}]}),
    ("messages", {"messages": [{"role": "user", "content": None}]}),
    ("messages", {"messages": [{"role": "user", "content": 123}]}),
    ("messages", {"messages": [{"role": "user", "content": {}}]}),
    ("messages", {"messages": [{"role": "nobody", "content": "hi"}]}),
    ("messages", {"messages": "hi"}),
    ("messages", {"messages": [1]}),
    (
        "messages",
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/"}}]}
            ]
        },
    ),
    ("top_logprobs", {"top_logprobs": 2}),
    ("top_logprobs", {"logprobs": True, "top_logprobs": -1}),
    ("logprobs", {"logprobs": True, "top_logprobs": 21}),
    ("logprobs", {"logprobs": 3}),
    ("tools", {"tools": [{"type": "function", "function": {"name": "f"}}]}),
    ("tools", {"tools": []}),
    ("tool_choice", {"tool_choice": "required"}),
    ("response_format", {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}}),
    ("chat_template", {"chat_template": "{{ messages }}"}),
    ("chat_template_kwargs", {"chat_template_kwargs": {"chat_template": "x"}}),
    ("chat_template_kwargs", {"chat_template_kwargs": {"tokenize": True}}),
    ("continue_final_message", {"continue_final_message": True, "add_generation_prompt": True}),
    ("prompt_logprobs", {"stream": True, "prompt_logprobs": 1}),
]


@pytest.mark.parametrize(("param", "fields"), BAD_CHATS, ids=lambda value: f"{value}"[:50])
def test_bad_chat_is_refused_by_name(http: httpx.Client, param: str, fields: dict[str, Any]) -> None:
    answer = http.post(CHAT, json={"model": "tiny", "messages": [USER], "max_tokens": 2, **fields})
    assert check_error(answer, 400)["param"] == param


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b'"text"',
        b'{"prompt": "a"',
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": Infinity}',
        b'{"prompt": "a", "temperature": 1e400}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "\xff\xfe"}',
        b'{"prompt": "\xc0\xaf"}',
        b'\xef\xbb\xbf{"prompt": 1}',
        b'{"prompt": "a", "metadata": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"prompt": "a", "metadata": ' + b'{"a":' * 100_000,
        b'{"max_tokens": 1}',
    ],
    ids=lambda value: repr(value[:40]),
)
def test_bad_json_is_400(http: httpx.Client, content: bytes) -> None:
    check_error(http.post(COMPLETIONS, content=content, headers={"content-type": "application/json"}), 400)


def test_wrong_content_type_is_415(http: httpx.Client) -> None:
    check_error(http.post(COMPLETIONS, content=b'{"prompt": "a"}', headers={"content-type": "text/plain"}), 415)
    check_error(http.post(COMPLETIONS, content=b'{"prompt": "a"}'), 415)


def test_unknown_model_path_and_method(http: httpx.Client) -> None:
    assert check_error(http.post(COMPLETIONS, json={"model": "no", "prompt": "a"}), 404)["code"] == "model_not_found"
    check_error(http.get("/v1/models/no"), 404)
    check_error(http.get("/v1/nowhere"), 404)
    answer = http.get(COMPLETIONS)
    check_error(answer, 405)
    assert answer.headers["allow"] == "POST"
    for method in ("TRACE", "OPTIONS", "DELETE"):
        check_error(http.request(method, COMPLETIONS), 405)


def test_empty_prompt_is_the_bos_token(http: httpx.Client) -> None:
    answer = http.post(COMPLETIONS, json={"prompt": "", "max_tokens": 1}).raise_for_status().json()
    assert answer["usage"]["prompt_tokens"] == 1
    check_error(http.post(COMPLETIONS, json={"prompt": "", "add_special_tokens": False}), 400)


def test_missing_model_is_the_served_one_and_unknown_fields_pass(http: httpx.Client, server: ServerProcess) -> None:
    for _ in range(2):
        answer = http.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 1, "no_such_field": {"a": [SECRET]}})
        assert answer.raise_for_status().json()["model"] == "tiny"
    assert server.log.count("no_such_field") == 1


def test_context_length_names_both_numbers(http: httpx.Client) -> None:
    for body in (
        {"prompt": [7] * 256, "max_tokens": 1},
        {"prompt": [7] * 250, "max_tokens": 7},
        {"prompt": "a b " * 400, "max_tokens": 1},
    ):
        error = check_error(http.post(COMPLETIONS, json=body), 400)
        assert error["code"] == "context_length_exceeded"
        assert "256" in error["message"]
    assert http.post(COMPLETIONS, json={"prompt": [7] * 255, "max_tokens": 1}).status_code == 200
    whole = http.post(CHAT, json={"messages": [USER], "ignore_eos": True}).raise_for_status().json()["usage"]
    assert whole["total_tokens"] == 256, "without max_tokens a chat may fill the context"


def test_huge_prompt_is_refused_without_blocking_others(http: httpx.Client) -> None:
    error = check_error(http.post(COMPLETIONS, json={"prompt": "a" * 20_000_000}), 400)
    assert error["code"] == "context_length_exceeded"
    assert http.get("/health").elapsed.total_seconds() < 0.5


def test_an_error_of_one_prompt_of_many_leaves_none_running(http: httpx.Client, server: ServerProcess) -> None:
    for stream in (False, True):
        body = {"prompt": [[7] * 20, [600]], "max_tokens": 100, "stream": stream}
        assert check_error(http.post(COMPLETIONS, json=body), 400)["param"] == "prompt"
    server.wait_idle()


def test_client_errors_leave_no_traceback(server: ServerProcess) -> None:
    assert "Traceback" not in server.log
    assert SECRET not in server.log
