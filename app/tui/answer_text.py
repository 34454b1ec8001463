"""AnswerText: splits a growing Markdown answer into text that may be rendered and an open code fence. Pure."""

from __future__ import annotations

import re

_FENCE = re.compile(r"^\s*(?:[-*+]\s+|>\s*|\d+[.)]\s+)*(`{3,}|~{3,})(.*)$")
_HEAD = 200


class AnswerText:
    """Takes an answer piece by piece.

    A fence that is not closed yet would be highlighted anew at every piece, so it stays apart, as plain text, until its
    last line has come; then it is settled as a whole. Nothing is lost: settled text and `open` together are the answer.
    """

    def __init__(self) -> None:
        self._pieces: list[str] = []
        # The unfinished line: its start, which decides, and, while it is kept back, all of it.
        self._head = ""
        self._line: list[str] = []
        self._open: list[str] = []
        self._marker: str | None = None

    @property
    def full(self) -> str:
        """The whole answer so far."""
        self._pieces = ["".join(self._pieces)]
        return self._pieces[0]

    @property
    def open(self) -> str:
        """What is not settled: an open fence, or the start of a line that may become one."""
        return "".join(self._open) + "".join(self._line)

    def feed(self, piece: str) -> str:
        """The text that this piece settles, to be appended to what was settled before."""
        self._pieces.append(piece)
        settled: list[str] = []
        lines = piece.split("\n")
        for line in lines[:-1]:
            settled.append(self._end_line(line + "\n"))
        settled.append(self._grow_line(lines[-1]))
        return "".join(settled)

    def _grow_line(self, text: str) -> str:
        """Adds to the line that has not ended; settles what cannot become a fence."""
        self._line.append(text)
        self._head += text[: _HEAD - len(self._head)]
        if self._holding():
            return ""
        settled = "".join(self._line)
        self._line.clear()
        return settled

    def _end_line(self, rest: str) -> str:
        held = self._holding()
        line = "".join(self._line) + rest
        self._line.clear()
        self._head = ""
        if self._marker is not None:
            self._open.append(line)
            if not self._closes(line):
                return ""
            self._marker = None
            settled = "".join(self._open)
            self._open.clear()
            return settled
        opening = _FENCE.match(line) if held else None
        if opening is not None and not (opening[1][0] == "`" and "`" in opening[2]):
            self._marker = opening[1]
            self._open.append(line)
            return ""
        return line

    def _holding(self) -> bool:
        """Whether the unfinished line is kept back: inside a fence, or while it could still become a fence."""
        if self._marker is not None or not self._head:
            return True
        return self._head.lstrip(" \t>-*+.)0123456789")[:1] in ("", "`", "~")

    def _closes(self, line: str) -> bool:
        marker = self._marker or ""
        stripped = line.strip().lstrip("> ")
        return len(stripped) >= len(marker) and set(stripped) == {marker[0]}
