"""IncrementalDetokenizer: pieces join to the text that follows the prompt, characters come whole."""

import time

import pytest
from text_tokenizers import byte_level, metaspace, sentencepiece, wordpiece
from text_tokenizers import token_id as id_of

from jaxserve.text.detokenizer import IncrementalDetokenizer
from jaxserve.text.tokenizer import Tokenizer


def pieces_of(tokenizer: Tokenizer, prompt: list[int], ids: list[int], **options: bool) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, prompt, **options)
    return [*(detokenizer.push([token_id]) for token_id in ids), detokenizer.finish()]


def test_a_character_waits_for_all_its_bytes():
    tokenizer = byte_level()
    ids = tokenizer.encode("a👍b", add_special_tokens=False)
    assert pieces_of(tokenizer, [0], ids) == ["a", "", "", "", "👍", "b", ""]


def test_a_cut_end_is_one_replacement_character():
    tokenizer = byte_level()
    ids = tokenizer.encode("a👍", add_special_tokens=False)[:-1]
    assert pieces_of(tokenizer, [0], ids) == ["a", "", "", "", "\ufffd"]


@pytest.mark.parametrize("make", [sentencepiece, metaspace])
def test_words_keep_their_space_after_a_prompt_and_only_there(make):
    tokenizer = make()
    word = tokenizer.encode("hello", add_special_tokens=False)
    assert "".join(pieces_of(tokenizer, tokenizer.encode("who"), word)) == " hello"
    assert "".join(pieces_of(tokenizer, [1], word)) == "hello"
    assert "".join(pieces_of(tokenizer, [], word + word)) == "hello hello"


def test_a_lone_space_token_at_the_start_is_the_one_that_is_stripped():
    tokenizer = sentencepiece()
    space = id_of(tokenizer, "▁")
    assert "".join(pieces_of(tokenizer, [1], [space, space])) == " " == tokenizer.decode([space, space])


def test_special_tokens_are_skipped_or_shown():
    tokenizer = byte_level()
    ids = [*tokenizer.encode("hi", add_special_tokens=False), 3, 4, *tokenizer.encode("ho", add_special_tokens=False)]
    assert "".join(pieces_of(tokenizer, [0], ids)) == "hiho"
    assert "".join(pieces_of(tokenizer, [0], ids, skip_special_tokens=False)) == "hi<|user|><|assistant|>ho"


def test_spaces_between_special_tokens():
    tokenizer = wordpiece()
    hello, sep, user = 3, 1, 2
    options = {"skip_special_tokens": False}
    spaced = "".join(pieces_of(tokenizer, [], [hello, sep, user, hello], **options))
    assert spaced == "hello [SEP] [USER] hello"
    tight = pieces_of(tokenizer, [], [hello, sep, user, hello], **options, spaces_between_special_tokens=False)
    assert "".join(tight) == "hello [SEP][USER] hello"


def test_word_tokenizers_join_endings():
    tokenizer = wordpiece()
    assert pieces_of(tokenizer, [7], [3, 5, 4, 6]) == [" hello", "s", " world", "ly", ""]


def test_the_output_may_complete_a_character_that_the_prompt_began():
    tokenizer = byte_level()
    thumb = tokenizer.encode("👍", add_special_tokens=False)
    assert len(thumb) == 4
    assert "".join(pieces_of(tokenizer, thumb[:2], thumb[2:])) == "👍"
    # ... but does not answer for one that stays broken.
    letter = tokenizer.encode("x", add_special_tokens=False)
    assert "".join(pieces_of(tokenizer, thumb[:2], letter)) == "x"
    assert "".join(pieces_of(tokenizer, thumb[:2], [])) == ""


def test_endless_broken_bytes_do_not_stall_the_stream():
    for tokenizer, broken in ((sentencepiece(), "<0xFF>"), (metaspace(), "<0xFF>")):
        token_id = id_of(tokenizer, broken)
        pieces = pieces_of(tokenizer, [1], [token_id] * 40)
        assert "".join(pieces) == "\ufffd" * 40
        assert sum(map(bool, pieces)) >= 4


@pytest.mark.parametrize("make", [byte_level, sentencepiece, wordpiece])
def test_cost_grows_linearly(make):
    tokenizer = make()
    ids = [5] * 500

    def seconds(num_repeats: int) -> float:
        detokenizer = IncrementalDetokenizer(tokenizer, ids)
        start = time.perf_counter()
        for _ in range(num_repeats):
            for token_id in ids:
                detokenizer.push([token_id])
        return time.perf_counter() - start

    seconds(1)
    # Quadratic cost would be 64 times as much; the margin is for a busy machine.
    assert min(seconds(8) for _ in range(3)) < 40 * max(min(seconds(1) for _ in range(3)), 1e-4)
