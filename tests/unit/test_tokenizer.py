"""Tokenizer: ids and text agree with the library underneath, bad input is refused clearly."""

import contextlib
import json
from pathlib import Path

import pytest
from text_tokenizers import byte_level, metaspace, sentencepiece, token_id, wordpiece

from jaxserve.core.errors import ConfigError, RequestError
from jaxserve.text.tokenizer import Tokenizer

TEXTS = [
    "hello world",
    "  two  spaces ",
    "naïve café €5",
    "日本語テキスト",
    "👩‍👩‍👧 family",
    "สวัสดี",
    "שלום עולם",
    "a\0b\ufeffc",
    "line\r\n\ttab",
    "\ufffd",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("make", [byte_level, sentencepiece, metaspace])
def test_ids_and_text_equal_those_of_transformers(make, text):
    tokenizer = make()
    ids = tokenizer.encode(text)
    assert ids == tokenizer.hf.encode(text)
    for skip in (True, False):
        assert tokenizer.decode(ids, skip) == tokenizer.hf.decode(ids, skip_special_tokens=skip)
    plain = tokenizer.encode(text, add_special_tokens=False)
    assert plain == ids[1:]


def test_word_tokenizers_decode_through_their_own_decoder():
    tokenizer = wordpiece()
    assert tokenizer.pieces is None
    assert tokenizer.max_bytes_per_token is None  # [UNK] stands for words of any length
    assert tokenizer.decode(tokenizer.encode("hello worlds")) == "hello worlds"


def test_byte_pieces_joined_are_the_text():
    for tokenizer in (byte_level(), sentencepiece()):
        ids = tokenizer.encode("hello wörld 👍", add_special_tokens=False)
        assert b"".join(map(tokenizer.token_bytes, ids)).lstrip(b" ").decode() == "hello wörld 👍"


def test_tokens_for_display():
    tokenizer = sentencepiece()
    hello, space_w = tokenizer.encode("hello wo", add_special_tokens=False)
    assert tokenizer.token_text(hello) == " hello"
    assert tokenizer.token_text(space_w) == " wo"
    first_byte = tokenizer.encode("👍", add_special_tokens=False)[1]
    assert tokenizer.token_bytes(first_byte) == b"\xf0"
    assert tokenizer.token_text(first_byte) == "\ufffd"
    assert tokenizer.token_text(2) == "</s>"


def test_ids_without_a_token_are_silent():
    tokenizer = byte_level()
    assert tokenizer.token_bytes(10**9) == b""
    assert tokenizer.decode([10**9, *tokenizer.encode("ok")]) == "ok"
    with pytest.raises(RequestError, match="negative"):
        tokenizer.decode([-1])


def test_facts():
    tokenizer = byte_level()
    assert tokenizer.vocab_size == 512
    assert tokenizer.bos_token_id == 0
    assert tokenizer.eos_token_ids == [1]
    assert tokenizer.special_ids == {0, 1, 2, 3, 4}
    assert tokenizer.special_tokens["eos_token"] == "<|end|>"
    longest = max(len(tokenizer.token_bytes(index)) for index in range(512))
    assert tokenizer.max_bytes_per_token == longest
    assert sentencepiece().eos_token_ids == [2]


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "👍\ud83d"])
def test_a_lone_surrogate_is_the_requests_error(text):
    with pytest.raises(RequestError, match="surrogate") as caught:
        byte_level().encode(text)
    assert caught.value.param == "prompt"
    caught_text = str(caught.value)
    caught_text.encode()  # the message itself can be sent


def test_invalid_bytes_become_replacement_characters():
    tokenizer = sentencepiece()
    byte = {value: token_id(tokenizer, f"<0x{value:02X}>") for value in (0xE2, 0x82, 0xAC, 0xFF)}
    euro = [byte[0xE2], byte[0x82], byte[0xAC]]
    assert tokenizer.decode(euro) == "€"
    # A damaged byte spoils nothing but itself.
    assert tokenizer.decode([*euro, byte[0xFF], *euro, byte[0xE2]]) == "€\ufffd€\ufffd"


def test_loads_a_checkpoint(tiny_checkpoint: Path):
    tokenizer = Tokenizer.load(tiny_checkpoint)
    assert tokenizer.decode(tokenizer.encode("Grüße 👋")) == "Grüße 👋"
    assert tokenizer.encode("x")[0] == tokenizer.bos_token_id


def test_truncation_and_padding_saved_in_a_checkpoint_do_not_cut_prompts(tiny_checkpoint: Path, tmp_path: Path):
    tokenizer = Tokenizer.load(tiny_checkpoint)
    tokenizer.backend.enable_truncation(4)
    tokenizer.backend.enable_padding(length=8)
    tokenizer.backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text((tiny_checkpoint / "tokenizer_config.json").read_text())
    loaded = Tokenizer.load(tmp_path)
    assert loaded.decode(loaded.encode("a long sentence indeed")) == "a long sentence indeed"
    assert len(loaded.encode("a")) == 2


def test_a_directory_without_tokenizer_names_the_files(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"tokenizer\.json.*--tokenizer"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("path", ["/does/not/exist", "nobody/has-this-model"])
def test_a_missing_model_is_a_config_error(path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=f"{path}.*tokenizer\\.json"):
        Tokenizer.load(path)


@pytest.mark.parametrize(
    ("make", "tokenizer_class"),
    [
        (sentencepiece, "LlamaTokenizer"),
        (sentencepiece, "CodeLlamaTokenizer"),
        (sentencepiece, "LlamaTokenizerFast"),
        (byte_level, "Qwen2Tokenizer"),
        (byte_level, "GPT2Tokenizer"),
        (byte_level, "PreTrainedTokenizerFast"),
    ],
)
def test_the_families_load_under_their_class_names(tmp_path: Path, make, tokenizer_class):
    """transformers rebuilds some classes' tokenizers: ids and byte pieces must be those of the file all the same."""
    tokenizer = make()
    tokenizer.backend.save(str(tmp_path / "tokenizer.json"))
    config = {
        "tokenizer_class": tokenizer_class,
        "bos_token": tokenizer.hf.bos_token,
        "eos_token": tokenizer.hf.eos_token,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = Tokenizer.load(tmp_path)
    assert loaded.encode("hello wörld 👍") == tokenizer.encode("hello wörld 👍")
    assert loaded.decode(loaded.encode("hello wörld 👍")) == "hello wörld 👍"
    assert loaded.pieces is not None
    assert tokenizer.pieces is not None
    # Some classes add special tokens of their own after the file's.
    assert loaded.pieces.pieces[: tokenizer.vocab_size] == tokenizer.pieces.pieces
    assert loaded.pieces.num_stripped_spaces == tokenizer.pieces.num_stripped_spaces
    assert loaded.eos_token_ids == tokenizer.eos_token_ids


def test_a_broken_tokenizer_is_a_config_error(tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ConfigError, match="cannot load a tokenizer"):
        Tokenizer.load(tmp_path)


def test_code_from_a_checkpoint_is_never_run(tiny_checkpoint: Path, tmp_path: Path):
    marker = tmp_path / "was_run"
    config = json.loads((tiny_checkpoint / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_bytes((tiny_checkpoint / "tokenizer.json").read_bytes())
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass EvilTokenizer: pass\n")
    with contextlib.suppress(ConfigError):
        Tokenizer.load(tmp_path)
    assert not marker.exists()
