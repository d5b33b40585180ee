"""The bundled checkpoint: small, complete, honest, understandable; through the engine as a user meets it."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from engines import SMALL

from jaxserve import LLM, SamplingParams
from jaxserve.core.checkpoint import load_model_config
from jaxserve.demo import DEMO_MODEL_NAME, demo_checkpoint
from jaxserve.demo.corpus import Document, documents, vocabulary, words
from jaxserve.demo.learning import named_params
from jaxserve.demo.tokenizer import encode
from jaxserve.demo.train import held_out_loss
from jaxserve.models.weights import load_params
from jaxserve.text.chat import ChatTemplate
from jaxserve.text.tokenizer import Tokenizer

MAX_CHECKPOINT_BYTES = 8 << 20
MAX_HELD_OUT_LOSS = 0.35
GREEDY = SamplingParams(temperature=0.0, max_tokens=120)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    """The engine with no model named: the bundled one."""
    few_shapes: dict[str, Any] = {**SMALL, "max_num_seqs": 2}
    with LLM(max_model_len=256, **few_shapes) as engine:
        yield engine


def ask(llm: LLM, *contents: str) -> str:
    """The greedy answer to the last of `contents`, which begin with the user and take turns."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    return llm.chat(messages, GREEDY, use_tqdm=False)[0].outputs[0].text


def test_the_checkpoint_is_small_and_complete() -> None:
    directory = demo_checkpoint()
    files = {path.name for path in directory.iterdir()}
    expected = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert files == expected | {"README.md"}
    assert sum(path.stat().st_size for path in directory.iterdir()) <= MAX_CHECKPOINT_BYTES
    assert DEMO_MODEL_NAME == "jaxserve-demo"
    config = json.loads((directory / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and config["tie_word_embeddings"]


def test_the_model_card_is_honest() -> None:
    card = (demo_checkpoint() / "README.md").read_text()
    assert "cannot do" in card and "jaxserve.demo.train" in card


def test_the_template_writes_what_the_model_was_trained_on() -> None:
    tokenizer = Tokenizer.load(demo_checkpoint())
    template = ChatTemplate.load(tokenizer)
    conversations = [document for document in documents(3, 200) if document.turns]
    for document in conversations[:50]:
        messages = [{"role": role, "content": content} for role, content in document.turns]
        text = template.render(messages, add_generation_prompt=False)
        expected, _ = encode(tokenizer.hf.backend_tokenizer, document)
        assert tokenizer.encode(text, add_special_tokens=False) == expected
        prompt = template.render(messages[:-1], add_generation_prompt=True)
        ids = tokenizer.encode(prompt, add_special_tokens=False)
        assert ids == expected[: len(ids)]


def test_a_plain_prompt_begins_as_in_training() -> None:
    tokenizer = Tokenizer.load(demo_checkpoint())
    expected, _ = encode(tokenizer.hf.backend_tokenizer, Document(text="Once upon a time"))
    assert tokenizer.encode("Once upon a time") == expected[:-1]


def test_any_text_survives_the_bundled_tokenizer() -> None:
    tokenizer = Tokenizer.load(demo_checkpoint())
    for text in ("12 + 34", "Grüße, 世界! 🙂", "\t tabs\n\nand  spaces ", "a\x00b"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("question", ["Who are you?", "What are you?", "Introduce yourself.", "Are you ChatGPT?"])
def test_it_says_what_it_is(llm: LLM, question: str) -> None:
    assert "tiny demonstration model" in ask(llm, question)


def test_a_system_message_does_not_change_what_it_is(llm: LLM) -> None:
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Who are you?"},
    ]
    text = llm.chat(messages, GREEDY, use_tqdm=False)[0].outputs[0].text
    assert "tiny demonstration model" in text


@pytest.mark.parametrize(
    ("question", "word"),
    [
        ("What is the capital of France?", "Paris"),
        ("What is the capital of Japan?", "Tokyo"),
        ("What colour is the sky?", "blue"),
        ("What is the opposite of hot?", "cold"),
        ("What is a rainbow?", "arc of colours"),
        ("What sound does a cow make?", "moos"),
        ("What is jaxserve?", "server for language models"),
        ("What is continuous batching?", "new requests join the running batch"),
        ("Hello!", "Hello"),
        ("Say this is a test!", "This is a test!"),
        ("Where is Kenya?", "Africa"),
    ],
)
def test_it_knows_its_small_world(llm: LLM, question: str, word: str) -> None:
    assert word in ask(llm, question)


@pytest.mark.parametrize(
    "question", ["Who won the world series in 2020?", "Write a Python function that sorts a list."]
)
def test_it_says_that_it_does_not_know(llm: LLM, question: str) -> None:
    assert "do not know" in ask(llm, question)


def test_everything_it_says_is_made_of_words_it_learned(llm: LLM) -> None:
    known = vocabulary()
    prompts = ["Hello, my name is", "The capital of France is", "The future of AI is", "Once upon a time", "A dog is"]
    outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
    for output in outputs:
        text = f"{output.prompt}{output.outputs[0].text}"
        unknown = words(text) - known
        assert not unknown, f"{text!r} holds {unknown}"
        assert output.outputs[0].finish_reason == "stop"


def test_a_story_is_a_story(llm: LLM) -> None:
    text = ask(llm, "Tell me a story about a fox.")
    assert len(re.findall(r"[.!?]", text)) >= 4
    assert not words(text) - vocabulary()


def test_held_out_loss() -> None:
    """Nats a learned token on documents it has not seen, in float32 with the checkpoint's weights."""
    config = replace(load_model_config(demo_checkpoint()), dtype="float32")
    params = named_params(config, load_params(config, demo_checkpoint()).leaves)
    tokenizer = Tokenizer.load(demo_checkpoint()).hf.backend_tokenizer
    assert held_out_loss(config, params, tokenizer, 5000, 40) < MAX_HELD_OUT_LOSS
