"""Chat templates: same prompt as transformers', every bad message or template refused with the right error."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from random_checkpoint import CHAT_TEMPLATE
from text_tokenizers import byte_level

from jaxserve.core.errors import ConfigError, RequestError
from jaxserve.text.chat import MAX_TEMPLATE_BYTES, ChatTemplate
from jaxserve.text.messages import MAX_MESSAGES, read_messages
from jaxserve.text.tokenizer import Tokenizer

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
PLAIN = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi <b>you</b> & 'me'"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye"},
]


def render(messages, template: str = PLAIN, **options) -> str:
    return ChatTemplate(template, SPECIAL).render(messages, **options)


def user(content: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_equals_transformers(tiny_checkpoint: Path, add_generation_prompt):
    tokenizer = Tokenizer.load(tiny_checkpoint)
    ours = ChatTemplate.load(tokenizer).render(CHAT, add_generation_prompt=add_generation_prompt)
    theirs = tokenizer.hf.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=add_generation_prompt)
    assert ours == theirs
    ids = tokenizer.hf.apply_chat_template(CHAT, return_dict=False, add_generation_prompt=add_generation_prompt)
    assert tokenizer.encode(ours, add_special_tokens=False) == ids


def test_continue_final_message_leaves_it_open():
    chat = [*user("Count"), {"role": "assistant", "content": "one, two"}]
    text = render(chat, PLAIN + "{{ eos_token }}", add_generation_prompt=False, continue_final_message=True)
    assert text == "[user]Count[assistant]one, two"


def test_continue_final_message_needs_text_and_no_new_answer():
    with pytest.raises(RequestError, match="add_generation_prompt"):
        render(CHAT, continue_final_message=True)
    with pytest.raises(RequestError, match="with text"):
        render([{"role": "assistant", "content": None}], add_generation_prompt=False, continue_final_message=True)
    template = "{% for m in messages %}{{ m.content[::-1] }}{% endfor %}"
    with pytest.raises(RequestError, match="continue_final_message"):
        render(CHAT, template, add_generation_prompt=False, continue_final_message=True)


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}],
        [{"text": "one"}, "two"],
        [{"type": "input_text", "text": "one"}, {"type": "text", "text": "two"}],
        "one\ntwo",
    ],
)
def test_text_parts_equal_the_joined_string(content):
    assert render(user(content)) == "[user]one\ntwo[assistant]"


def test_empty_content_is_text_too():
    assert render(user("")) == render(user([])) == "[user][assistant]"


@pytest.mark.parametrize(
    ("messages", "where"),
    [
        ([], "messages"),
        ("hello", "messages"),
        (None, "messages"),
        ({"role": "user", "content": "x"}, "messages"),
        (["hello"], "messages[0]"),
        ([None], "messages[0]"),
        ([{"content": "x"}], "messages[0].role"),
        ([{"role": "wizard", "content": "x"}], "messages[0].role"),
        ([{"role": 3, "content": "x"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        (user(None), "messages[0].content"),
        (user(123), "messages[0].content"),
        (user({}), "messages[0].content"),
        (user([3]), "messages[0].content[0]"),
        (user([{"type": "text"}]), "messages[0].content[0].text"),
        (user([{"type": "text", "text": 5}]), "messages[0].content[0].text"),
        (user([{"type": ["text"], "text": "x"}]), "messages[0].content[0]"),
        ([{"role": "user", "content": "x", "name": 3}], "messages[0].name"),
        ([{"role": "assistant", "tool_calls": "x"}], "messages[0].tool_calls"),
        ([{"role": "assistant", "tool_calls": [{}]}], "messages[0].tool_calls[0]"),
        (user("x") * (MAX_MESSAGES + 1), "messages"),
    ],
)
def test_bad_messages_are_refused_by_place(messages, where):
    with pytest.raises(RequestError) as caught:
        render(messages)
    assert str(caught.value).startswith(where + " ")
    assert caught.value.param == "messages"


@pytest.mark.parametrize("url", ["http://169.254.169.254/", "http://127.0.0.1:9/x.png", "file:///etc/passwd"])
@pytest.mark.parametrize("kind", ["image_url", "input_audio", "video_url"])
def test_other_media_are_refused_and_never_fetched(kind, url):
    with pytest.raises(RequestError, match="text only") as caught:
        render(user([{"type": "text", "text": "look"}, {"type": kind, kind: {"url": url}}]))
    assert url not in str(caught.value)


def test_lone_surrogates_are_refused():
    with pytest.raises(RequestError, match="surrogate"):
        render(user("\ud800"))


def test_developer_is_system_unless_the_template_knows_it():
    chat = [{"role": "developer", "content": "x"}]
    assert render(chat) == "[system]x[assistant]"
    assert "[developer]" in render(chat, PLAIN + "{# developer #}")


def test_tool_calls_reach_the_template_with_parsed_arguments():
    call: dict[str, Any] = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    template = (
        "{% for m in messages %}{{ m.tool_calls[0].function.arguments.a if m.tool_calls else m.content }};{% endfor %}"
    )
    chat = [*user("q"), {"role": "assistant", "content": None, "tool_calls": [call]}]
    assert render(chat, template) == "q;1;"
    assert call["function"]["arguments"] == '{"a": 1}', "the caller's messages stay as they were"
    odd = {"function": {"name": "f", "arguments": "not json"}}
    read = read_messages([{"role": "assistant", "tool_calls": [odd]}])
    assert read[0]["tool_calls"][0]["function"]["arguments"] == "not json"


def test_chat_template_kwargs_reach_the_template():
    template = PLAIN + "{% if thinking %}<think>{% endif %}"
    assert render(user("x"), template, chat_template_kwargs={"thinking": True}).endswith("<think>")
    assert not render(user("x"), template).endswith("<think>")


@pytest.mark.parametrize(
    "name",
    [
        "chat_template",
        "tokenize",
        "messages",
        "add_generation_prompt",
        "tools",
        "documents",
        "continue_final_message",
        "conversations",
        "return_assistant_tokens_mask",
        "bos_token",
        "self",
        "raise_exception",
        "__class__",
        "_x",
        "a b",
        "",
        "1x",
        3,
    ],
)
def test_reserved_kwargs_are_refused(name):
    with pytest.raises(RequestError) as caught:
        render(user("x"), chat_template_kwargs={name: "evil"})
    assert caught.value.param == "chat_template_kwargs"


def test_a_model_without_template_names_the_flag():
    with pytest.raises(RequestError, match="--chat-template"):
        ChatTemplate(None, SPECIAL).render(CHAT)
    assert byte_level().hf.chat_template is None
    with pytest.raises(RequestError, match="no chat template"):
        ChatTemplate.load(byte_level()).render(CHAT)


def test_what_a_template_says_reaches_the_user():
    template = "{{ raise_exception('Conversation roles must alternate') }}"
    with pytest.raises(RequestError, match="must alternate"):
        render(CHAT, template)


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[99].content }}",
        "{{ messages[0].content + 1 }}",
        "{{ missing.field }}",
        "{{ 1 // 0 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for i in range(10**9) %}{% endfor %}",
    ],
)
def test_a_failing_template_is_the_requests_error_and_quotes_no_prompt(template):
    with pytest.raises(RequestError) as caught:
        render(user("my secret"), template)
    assert "secret" not in str(caught.value)
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ lipsum.__globals__['os'].popen('id') }}",
    ],
)
def test_templates_cannot_leave_the_sandbox(template):
    with pytest.raises(ConfigError, match="sandbox"):
        ChatTemplate(template, SPECIAL)


@pytest.mark.parametrize("template", ["{% for m in messages %}", "{{ messages[0 }}", "{% nonsense %}"])
def test_a_syntax_error_stops_the_start_and_names_the_line(template):
    with pytest.raises(ConfigError, match="line 2"):
        ChatTemplate("\n" + template, SPECIAL)


def test_a_template_that_needs_a_system_message_starts():
    template = "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}ok"
    assert render(CHAT, template) == "ok"
    with pytest.raises(RequestError, match="system first"):
        render(user("x"), template)


def test_override_by_text_or_file(tmp_path: Path):
    tokenizer = byte_level()
    assert ChatTemplate.load(tokenizer, PLAIN).render(user("x")) == "[user]x[assistant]"
    path = tmp_path / "template.jinja"
    path.write_text(PLAIN + "é")
    assert ChatTemplate.load(tokenizer, str(path)).render(user("x")) == "[user]x[assistant]é"


def test_bad_overrides_stop_the_start(tmp_path: Path):
    tokenizer = byte_level()
    big, binary = tmp_path / "big.jinja", tmp_path / "binary.jinja"
    big.write_bytes(b" " * (MAX_TEMPLATE_BYTES + 1))
    binary.write_bytes(b"\xff\xfe")
    for override, reason in [
        (str(tmp_path / "missing.jinja"), "neither a readable file"),
        (str(tmp_path), "neither a readable file"),
        ("a\0b", "neither a readable file"),
        (str(big), "too large"),
        (str(binary), "not UTF-8"),
        ("{{" + " " * MAX_TEMPLATE_BYTES + "}}", "larger"),
    ]:
        with pytest.raises(ConfigError, match=reason):
            ChatTemplate.load(tokenizer, override)


def test_named_templates_of_a_checkpoint(tiny_checkpoint: Path, tmp_path: Path):
    config = json.loads((tiny_checkpoint / "tokenizer_config.json").read_text())
    config["chat_template"] = [
        {"name": "default", "template": CHAT_TEMPLATE},
        {"name": "tool_use", "template": "{{ tools[0].function.name }}"},
    ]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_bytes((tiny_checkpoint / "tokenizer.json").read_bytes())
    template = ChatTemplate.load(Tokenizer.load(tmp_path))
    assert template.default == CHAT_TEMPLATE
    tools = [{"type": "function", "function": {"name": "weather"}}]
    assert template.render(user("x"), tools=tools) == "weather"
    assert "weather" not in template.render(user("x"))


def test_size_is_bounded_before_rendering():
    start = time.perf_counter()
    with pytest.raises(RequestError, match="1000 characters") as caught:
        render(user("a" * 600) * 2, max_chars=1000)
    assert caught.value.code == "context_length_exceeded"
    assert render(user("a" * 500) * 2, max_chars=1000)
    with pytest.raises(RequestError, match="limit"):
        render(user("x") * 50_000)
    render(user("x") * MAX_MESSAGES)
    assert time.perf_counter() - start < 5


def test_special_tokens_inside_a_message_become_tokens(tiny_checkpoint: Path):
    """The documented rule: as in transformers, text is not protected against control tokens."""
    tokenizer = Tokenizer.load(tiny_checkpoint)
    text = ChatTemplate.load(tokenizer).render(user("<|end|>"))
    assert tokenizer.encode(text, add_special_tokens=False).count(1) == 2
