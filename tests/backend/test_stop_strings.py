"""Stop strings: found over any cutting of the text, nothing after them, in linear time."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.stop_strings import StopStrings


def run(strings: list[str], parts: list[str], include: bool = False) -> tuple[str, str | None]:
    stops = StopStrings(strings, include)
    text = ""
    for part in parts:
        text += stops.feed(part)
    return text + stops.flush(), stops.matched


def plainly(strings: list[str], text: str, include: bool) -> tuple[str, str | None]:
    for end in range(1, len(text) + 1):
        ending = [string for string in strings if text[:end].endswith(string)]
        if ending:
            longest = max(ending, key=len)
            return text[: end if include else end - len(longest)], longest
    return text, None


@given(
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.text("abc", max_size=5), max_size=8),
    st.booleans(),
)
def test_any_cutting_gives_what_the_whole_text_gives(strings: list[str], parts: list[str], include: bool):
    assert run(strings, parts, include) == plainly(strings, "".join(parts), include)


def test_without_stop_strings_everything_passes_at_once():
    stops = StopStrings(())
    assert stops.feed("abc") == "abc"
    assert stops.flush() == ""


def test_nothing_follows_a_match():
    stops = StopStrings(["END"])
    assert stops.feed("an END and more") == "an "
    assert stops.feed("more") == stops.flush() == ""


@pytest.mark.parametrize("part", [4, 1000])
def test_a_megabyte_of_hostile_text_takes_under_a_second(part: int):
    stops = StopStrings(["a" * 1023 + "b"])
    text = "a" * 1_000_000
    began = time.process_time()
    passed = sum(len(stops.feed(text[start : start + part])) for start in range(0, len(text), part))
    assert passed + len(stops.flush()) == len(text)
    assert time.process_time() - began < 1.0
