"""Text safety: takes what could steer a terminal out of text from models and servers. Showing it is the faces'."""

from __future__ import annotations

import re
from typing import Any, Literal

# C0 but tab and newline, DEL and C1; bidi controls and marks; line and paragraph separators; lone surrogates
# (they cannot be encoded); the invisible tag characters; the byte order mark.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ud800-\udfff\ufeff\U000e0000-\U000e007f]"
)
_LINE_BREAKS = frozenset("\r\u0085\u2028\u2029")
_STRING_OPENERS = frozenset("]PX^_")
_MOST_SEQUENCE_CHARACTERS = 4096
# Of one text in what a server tells: its longest are sentences.
_MOST_CHARACTERS = 4096
_State = Literal["text", "escape", "control", "string", "string escape"]


class TextCleaner:
    """Cleans a stream of text in linear time, also where an escape sequence is cut between two chunks.

    Whole CSI, OSC, DCS, PM and APC sequences go, not only their first character. A sequence that never ends
    is given
    up at a newline or after 4,096 characters, so it cannot swallow an answer. Carriage returns become
    newlines, lone
    surrogates U+FFFD; the other unsafe characters vanish.
    """

    def __init__(self) -> None:
        self._state: _State = "text"
        self._skipped = 0
        self._after_carriage_return = False

    def feed(self, chunk: str) -> str:
        """The part of `chunk` that is safe to show."""
        out: list[str] = []
        position = 0
        while position < len(chunk):
            in_text = self._state == "text"
            position = self._text(chunk, position, out) if in_text else self._sequence(chunk, position)
        return "".join(out)

    def _text(self, chunk: str, position: int, out: list[str]) -> int:
        if self._after_carriage_return:
            self._after_carriage_return = False
            if chunk[position] == "\n":
                return position + 1
        found = _UNSAFE.search(chunk, position)
        if found is None:
            out.append(chunk[position:])
            return len(chunk)
        out.append(chunk[position : found.start()])
        character = found.group()
        if character in _LINE_BREAKS:
            out.append("\n")
            self._after_carriage_return = character == "\r"
        elif "\ud800" <= character <= "\udfff":
            out.append("\ufffd")
        elif character == "\x1b":
            self._enter("escape")
        elif character == "\x9b":
            self._enter("control")
        elif character in "\x90\x98\x9d\x9e\x9f":
            self._enter("string")
        return found.end()

    def _enter(self, state: _State) -> None:
        self._state, self._skipped = state, 0

    def _sequence(self, chunk: str, position: int) -> int:
        """Consumes one character of an escape sequence, or none where it ends the sequence as plain text."""
        character = chunk[position]
        self._skipped += 1
        if self._skipped > _MOST_SEQUENCE_CHARACTERS or character == "\n":
            self._state = "text"
            return position
        if self._state == "string":
            self._string(character)
        elif self._state == "string escape":
            # ESC \ ends the string; ESC and anything else starts the next sequence.
            self._enter("text" if character == "\\" else "escape")
            return position + 1 if character == "\\" else position
        elif self._state == "escape":
            return self._escape(character, position)
        elif "\x20" <= character <= "\x3f":
            pass
        elif "\x40" <= character <= "\x7e":
            self._state = "text"
        else:
            self._state = "text"
            return position
        return position + 1

    def _string(self, character: str) -> None:
        if character in "\x07\x9c":
            self._state = "text"
        elif character == "\x1b":
            self._state = "string escape"

    def _escape(self, character: str, position: int) -> int:
        if character == "[":
            self._enter("control")
        elif character in _STRING_OPENERS:
            self._enter("string")
        elif "\x20" <= character <= "\x2f":
            pass
        elif "\x30" <= character <= "\x7e":
            self._state = "text"
        else:
            self._state = "text"
            return position
        return position + 1


def clean(text: str) -> str:
    """`text` without anything that steers a terminal or reorders what is read; newlines and tabs stay."""
    return text if _UNSAFE.search(text) is None else TextCleaner().feed(text)


def clean_line(text: str, limit: int = 200) -> str:
    """`text` cleaned, on one line, with runs of blanks joined, cut to `limit` characters with an ellipsis."""
    line = " ".join(clean(text[: limit * 8]).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def cleaned(value: Any) -> Any:
    """What JSON was decoded to, with every text in it cleaned and on one line."""
    match value:
        case str():
            return clean_line(value, _MOST_CHARACTERS)
        case list():
            return [cleaned(one) for one in value]
        case dict():
            return {clean_line(str(name)): cleaned(one) for name, one in value.items()}
        case _:
            return value
