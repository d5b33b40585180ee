"""StopChecker: stop strings across any border, and no more held back than could begin one."""

import pytest

from jaxserve.text.stop import StopChecker


def run(stop: list[str], pieces: list[str], **options: bool) -> tuple[list[str], str | None]:
    checker = StopChecker(stop, **options)
    return [*(checker.push(piece) for piece in pieces), checker.finish()], checker.matched


def test_found_across_pieces():
    assert run(["lo w"], ["hel", "lo", " ", "world"]) == (["he", "l", "", "", ""], "lo w")


def test_kept_on_request_and_nothing_is_held():
    pieces, matched = run(["lo w"], ["hel", "lo", " ", "world"], include_in_output=True)
    assert (pieces, matched) == (["hel", "lo", " ", "w", ""], "lo w")


def test_holds_only_what_could_begin_a_stop_string():
    assert run(["END"], ["aE", "b", "EN", "x", "EN"]) == (["a", "Eb", "", "ENx", "", "EN"], None)


def test_the_first_complete_stop_string_wins_however_the_text_is_cut():
    for pieces in (["abcd"], ["a", "b", "c", "d"], ["ab", "cd"]):
        texts, matched = run(["abcd", "bc"], pieces)
        assert ("".join(texts), matched) == ("a", "bc")


def test_the_longest_of_those_that_end_together():
    texts, matched = run(["\n", "\n\n", "x\n"], ["ax", "\n\n"])
    assert ("".join(texts), matched) == ("a", "x\n")


def test_self_overlapping_stop_string():
    texts, matched = run(["aab"], ["aaa", "ab"])
    assert ("".join(texts), matched) == ("aa", "aab")


def test_a_match_that_does_not_count_is_text():
    checker = StopChecker(["ab"])
    assert checker.push("xab", may_stop=False) == "xab"
    assert checker.matched is None
    assert checker.push("yab") == "y"
    assert checker.matched == "ab"


def test_a_match_may_begin_where_it_did_not_count():
    checker = StopChecker(["ab"])
    assert checker.push("xa", may_stop=False) == "x"
    assert checker.push("b") == ""
    assert checker.matched == "ab"


def test_text_after_the_match_is_dropped():
    checker = StopChecker(["."])
    assert checker.push("one. two.") == "one"
    assert checker.push("three") == ""
    assert checker.finish() == ""


def test_without_stop_strings_text_passes():
    assert run([], ["a", "", "b"]) == (["a", "", "b", ""], None)


@pytest.mark.parametrize("num_stops", [1, 4])
def test_adversarial_repetition_stays_linear(num_stops):
    stops = ["a" * 2000 + str(index) for index in range(num_stops)]
    checker = StopChecker(stops)
    released = "".join(checker.push("a" * 10) for _ in range(2000))
    assert len(released) + len(checker.finish()) == 20000
