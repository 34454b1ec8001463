"""Rule 20: nothing from a model reaches the terminal as a control sequence."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.text_safety import TextCleaner, clean, clean_line

HOSTILE = [
    ("plain text\n\twith tab", "plain text\n\twith tab"),
    ("a\x1b[31mred\x1b[0mb", "aredb"),
    ("a\x1b]0;title\x07b", "ab"),
    ("a\x1b]52;c;aGk=\x1b\\b", "ab"),
    ("a\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\b", "alinkb"),
    ("a\x1bP1;2q data\x1b\\b", "ab"),
    ("a\x9b2Jb", "ab"),
    ("a\x9d0;x\x9cb", "ab"),
    ("a\x1b(Bb", "ab"),
    ("a\x1bcb", "ab"),
    ("a\x08\x7f\x00\x0bb", "ab"),
    ("one\r\ntwo\rthree", "one\ntwo\nthree"),
    ("one\u2028two", "one\ntwo"),
    ("\u202eevil\u202c \u2066x\u2069\u200f", "evil x"),
    ("half \ud83d pair", "half \ufffd pair"),
    ("tag\U000e0041s", "tags"),
    ("unended \x1b]0;title\nnext line", "unended \nnext line"),
    ("family 👨‍👩‍👧 日本語 é", "family 👨‍👩‍👧 日本語 é"),
    ("[bold]not markup[/bold]", "[bold]not markup[/bold]"),
    ("a\x1b[31\x1b[32mb", "ab"),
    ("a\x1b]0;x\x1b[31mb", "ab"),
]


@pytest.mark.parametrize(("text", "safe"), HOSTILE)
def test_clean(text: str, safe: str) -> None:
    assert clean(text) == safe


@pytest.mark.parametrize(("text", "safe"), HOSTILE)
def test_cleaning_character_by_character_gives_the_same(text: str, safe: str) -> None:
    cleaner = TextCleaner()
    assert "".join(cleaner.feed(character) for character in text) == safe


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(["\x1b", "[", "]", "\x07", "\\", "m", "3", "\r", "\n", "\x9b", "a", "\u202e"])))
def test_no_control_survives_and_cleaning_twice_changes_nothing(pieces: list[str]) -> None:
    safe = clean("".join(pieces))
    assert not any((ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 or c == "\u202e" for c in safe)
    assert clean(safe) == safe


@pytest.mark.parametrize("unit", ["\x1b]", "\x1b[", "\x1b", "\x9d", "\x1b]0;a", "\x1b\x1b\\", "\r"])
def test_hostile_text_is_cleaned_in_linear_time(unit: str) -> None:
    text = unit * (200_000 // len(unit))
    start = time.perf_counter()
    clean(text)
    assert time.perf_counter() - start < 1.0


def test_an_endless_sequence_cannot_swallow_the_answer() -> None:
    assert clean("\x1b]0;" + "x" * 10_000).endswith("x" * 5_000)


def test_clean_line() -> None:
    assert clean_line("  two\n lines \x1b[1m here ") == "two lines here"
    assert clean_line("x" * 300, 10) == "x" * 9 + "…"
