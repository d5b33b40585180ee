"""Streamed text is the whole text, for any characters, any tokens, any cut and any stop strings."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from text_tokenizers import byte_level, metaspace, sentencepiece

from jaxserve.core.outputs import EngineOutput, FinishReason
from jaxserve.core.params import RequestOutputKind, SamplingParams
from jaxserve.engine.output_processor import OutputProcessor
from jaxserve.text.detokenizer import IncrementalDetokenizer
from jaxserve.text.stop import StopChecker

TRIES = settings(deadline=None, max_examples=150)

ALPHABET = st.one_of(
    st.characters(exclude_categories=["Cs"]),
    st.sampled_from("helo wrd\n"),
    st.sampled_from(
        ["👍", "👩‍👩‍👧", "🇩🇪", "é", "e\u0301", "€", "ก็", "สวัสดี", "שלום", "مرحبا", "中", "\u200f", "\ufeff", "\0"]
    ),
)
TEXTS = st.lists(ALPHABET, max_size=24).map("".join)
CUTS = st.lists(st.integers(0, 60), max_size=12)
BYTE_EXACT = st.sampled_from([byte_level, sentencepiece])


def cut(items: Sequence, cuts: list[int]) -> list[Sequence]:
    """`items` in pieces, split at the cuts that fall inside; some pieces may be empty."""
    points = [0, *sorted(point for point in cuts if point <= len(items)), len(items)]
    return [items[start:stop] for start, stop in pairwise(points)]


@TRIES
@given(TEXTS, BYTE_EXACT)
@example(" ", sentencepiece)
@example("", byte_level)
def test_text_survives_tokenizing(text, make):
    tokenizer = make()
    assert tokenizer.decode(tokenizer.encode(text)) == text


@TRIES
@given(TEXTS, TEXTS, CUTS, st.sampled_from([byte_level, sentencepiece, metaspace]))
def test_pieces_join_to_what_follows_the_prompt(prompt, text, cuts, make):
    tokenizer = make()
    prompt_ids = tokenizer.encode(prompt)
    ids = tokenizer.encode(text, add_special_tokens=False)
    detokenizer = IncrementalDetokenizer(tokenizer, prompt_ids)
    pieces = [*(detokenizer.push(piece) for piece in cut(ids, cuts)), detokenizer.finish()]
    whole = tokenizer.decode(prompt_ids + ids)
    before = tokenizer.decode(prompt_ids)
    assert before + "".join(pieces) == whole
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@TRIES
@given(st.lists(st.integers(0, 511), max_size=40), CUTS, BYTE_EXACT, st.booleans())
def test_any_tokens_in_any_cut_are_the_whole_decode(ids, cuts, make, skip):
    """Also where the tokens make no valid text at all."""
    tokenizer = make()
    detokenizer = IncrementalDetokenizer(tokenizer, [], skip)
    pieces = [*(detokenizer.push(piece) for piece in cut(ids, cuts)), detokenizer.finish()]
    assert "".join(pieces) == tokenizer.decode(ids, skip)


@TRIES
@given(st.lists(st.integers(0, 511), max_size=40), st.booleans())
def test_byte_level_decoding_is_the_librarys_even_on_broken_text(ids, skip):
    tokenizer = byte_level()
    assert tokenizer.decode(ids, skip) == tokenizer.backend.decode(ids, skip_special_tokens=skip)


@TRIES
@given(st.lists(st.integers(0, 280), max_size=30), st.booleans())
def test_sentencepiece_decoding_is_the_librarys_on_sound_text(ids, skip):
    tokenizer = sentencepiece()
    theirs = tokenizer.backend.decode(ids, skip_special_tokens=skip)
    ours = tokenizer.decode(ids, skip)
    if "\ufffd" in theirs:
        # The library gives up whole runs of bytes; here only the damaged ones are lost.
        assert "\ufffd" in ours
        assert ours.count("\ufffd") <= theirs.count("\ufffd")
    else:
        assert ours == theirs


def first_stop(text: str, stops: list[str], start: int = 0) -> tuple[int, str] | None:
    """Brute force: where the first stop string to be complete after `start` characters ends, the longest of equals."""
    for end in range(start + 1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return end, max(found, key=len)
    return None


@pytest.mark.parametrize("include", [False, True])
@TRIES
@given(
    st.text("ab\n👍", max_size=40), st.lists(st.text("ab\n👍", min_size=1, max_size=5), min_size=1, max_size=4), CUTS
)
def test_stop_strings_equal_a_search_of_the_whole_text(include, text, stops, cuts):
    checker = StopChecker(stops, include)
    released, seen = "", 0
    for piece in cut(text, cuts):
        released += checker.push(str(piece))
        seen += len(piece)
        if checker.matched is None:
            assert text.startswith(released)
            assert seen - len(released) <= (0 if include else max(map(len, stops)) - 1)
    released += checker.finish()
    hit = first_stop(text, stops)
    if hit is None:
        assert (released, checker.matched) == (text, None)
    else:
        end, stop = hit
        assert checker.matched == stop
        assert released == text[: end if include else end - len(stop)]


@TRIES
@given(TEXTS, st.lists(TEXTS.filter(bool).map(lambda text: text[:4]), max_size=3), CUTS, BYTE_EXACT, st.integers(1, 5))
def test_the_stream_is_the_offline_text(text, stops, cuts, make, interval):
    """Through the whole front end: deltas joined = the last cumulative text = decode, cut at the stop string."""
    tokenizer = make()
    prompt = tokenizer.encode("x")
    ids = tokenizer.encode(text, add_special_tokens=False)
    whole = tokenizer.decode(prompt + ids)[1:]
    hit = first_stop(whole, stops)
    expected = whole if hit is None else whole[: hit[0] - len(hit[1])]
    told: list[str] = []
    for kind in RequestOutputKind:
        processor = OutputProcessor(tokenizer)
        params = SamplingParams(stop=stops, output_kind=kind, stream_interval=interval, max_tokens=1000)
        processor.add("r", "x", prompt, params)
        news = [EngineOutput("r", list(piece)) for piece in cut(ids, cuts)]
        news.append(EngineOutput("r", finish_reason=FinishReason.LENGTH))
        outputs = [output for one in news for output in processor.process([one]).request_outputs]
        assert [output.finished for output in outputs].count(True) == 1
        assert outputs[-1].finished
        texts = [output.outputs[0].text for output in outputs]
        told.append("".join(texts) if kind is RequestOutputKind.DELTA else texts[-1])
        assert outputs[-1].outputs[0].stop_reason == (hit[1] if hit else None)
    assert told == [expected] * 3
