"""StopStrings: finds stop strings in streamed text and holds back what may be the beginning of one.

One automaton a stop string (Knuth, Morris, Pratt): its state is the longest end of the text so far that begins the
stop string, so that each character costs the same however hostile text and stop strings are.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """The matcher of one answer.

    Args:
        strings: stop strings, none of them empty.
        include: whether the text up to a match ends with the stop string.
    """

    def __init__(self, strings: Sequence[str], include: bool = False) -> None:
        self._strings, self._include = tuple(strings), include
        self._tables = tuple(_failure_table(each) for each in self._strings)
        self._states = [0] * len(self._strings)
        self._held = ""
        self.matched: str | None = None

    def feed(self, text: str) -> str:
        """The text that may be sent now; after a match (`matched` is set then) nothing more follows."""
        if not self._strings:
            return text
        if self.matched is not None or not text:
            return ""
        start = len(self._held)
        text = self._held + text
        for position in range(start, len(text)):
            self._advance(text[position])
            if self.matched is not None:
                end = position + 1
                self._held = ""
                return text[: end if self._include else end - len(self.matched)]
        keep = max(self._states)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, at the end of the answer."""
        held, self._held = self._held, ""
        return held

    def _advance(self, character: str) -> None:
        matched = None
        for index, string in enumerate(self._strings):
            state, table = self._states[index], self._tables[index]
            while state and string[state] != character:
                state = table[state - 1]
            if string[state] == character:
                state += 1
            # Of those that end here, the longest began first.
            if state == len(string):
                if matched is None or len(string) > len(matched):
                    matched = string
                state = table[state - 1]
            self._states[index] = state
        self.matched = matched


def _failure_table(string: str) -> list[int]:
    """For each prefix, the length of its longest proper end that also begins the string."""
    table, length = [0] * len(string), 0
    for index in range(1, len(string)):
        while length and string[index] != string[length]:
            length = table[length - 1]
        if string[index] == string[length]:
            length += 1
        table[index] = length
    return table
