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
        held, text = len(self._held), self._held + text
        match: tuple[int, int] | None = None
        for index, string in enumerate(self._strings):
            end = self._advance(index, text, held)
            # The first to end; of those that end together, the longest, which began first.
            if end is not None and (match is None or (end, -len(string)) < match):
                match, self.matched = (end, -len(string)), string
        if match is not None:
            end, length = match
            self._held = ""
            return text[: end if self._include else end + length]
        keep = max(self._states)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, at the end of the answer."""
        held, self._held = self._held, ""
        return held

    def _advance(self, index: int, text: str, start: int) -> int | None:
        """Runs one automaton over the text from `start`; where its string ends, None if nowhere."""
        string, table, state = self._strings[index], self._tables[index], self._states[index]
        if state == 0:
            # Most text has not even the first character.
            start = text.find(string[0], start)
            if start < 0:
                return None
        size = len(string)
        for position in range(start, len(text)):
            character = text[position]
            while state and string[state] != character:
                state = table[state - 1]
            if string[state] == character:
                state += 1
                if state == size:
                    return position + 1
        self._states[index] = state
        return None


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
