"""`StopChecker`: finds stop strings in a stream of text."""

from collections.abc import Sequence


class StopChecker:
    """Looks for stop strings across any borders; what might still become one is held back.

    The first stop string to be *complete* wins, the longest of those that end there: the one rule
    that gives the same answer however the text is cut into pieces. Text from the match on is
    dropped; with include_in_output it is kept up to the match's end, and nothing is held back.
    At most max(len(stop)) - 1 characters are held, fewer where they cannot begin a stop string.
    Cost: each character is looked at a constant number of times per stop string (Knuth-Morris-Pratt).

    matched: the stop string found, else None.
    """

    def __init__(self, stop: Sequence[str], include_in_output: bool = False) -> None:
        # Longest first, so that the first complete one is the one to report.
        self._stops = sorted(set(stop), key=len, reverse=True)
        self._borders = [_borders(text) for text in self._stops]
        self._states = [0] * len(self._stops)  # characters of each stop string that the text's end matches
        self._include = include_in_output
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str, may_stop: bool = True) -> str:
        """The text to release. may_stop False: a stop string completed in this text does not count."""
        if self.matched is not None:
            return ""
        if not self._stops:
            return text
        for index, char in enumerate(text):
            hit = self._advance(char)
            if hit is not None and may_stop:
                return self._stop_at(hit, self._held + text[: index + 1])
        return self._release(self._held + text)

    def finish(self) -> str:
        """The text held back, once it is known that nothing follows."""
        rest, self._held = self._held, ""
        return rest

    def _advance(self, char: str) -> str | None:
        hit = None
        for index, stop in enumerate(self._stops):
            borders, state = self._borders[index], self._states[index]
            while state and stop[state] != char:
                state = borders[state]
            if stop[state] == char:
                state += 1
            if state == len(stop):
                hit = hit or stop
                state = borders[state]
            self._states[index] = state
        return hit

    def _stop_at(self, stop: str, text: str) -> str:
        self.matched, self._held = stop, ""
        return text if self._include else text[: len(text) - len(stop)]

    def _release(self, text: str) -> str:
        num_held = 0 if self._include else max(self._states)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]


def _borders(text: str) -> list[int]:
    """borders[k]: length of the longest proper prefix of text[:k] that is also its suffix."""
    borders = [0] * (len(text) + 1)
    state = 0
    for k in range(1, len(text)):
        while state and text[k] != text[state]:
            state = borders[state]
        if text[k] == text[state]:
            state += 1
        borders[k + 1] = state
    return borders
