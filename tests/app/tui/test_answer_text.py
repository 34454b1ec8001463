"""Splitting a growing answer: nothing is lost, and an open fence stays apart until it is whole."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.tui.answer_text import AnswerText

PIECES = st.lists(st.sampled_from(["```", "`", "~~~", "\n", "py", "text", " ", "    ", "- ", "> ", "1. ", "``"]))


@settings(max_examples=300, deadline=None)
@given(PIECES)
def test_settled_and_open_text_are_the_answer(pieces: list[str]) -> None:
    text = AnswerText()
    settled = ""
    for piece in pieces:
        settled += text.feed(piece)
        assert settled + text.open == text.full
    assert text.full == "".join(pieces)


def test_an_open_fence_is_apart_until_it_closes() -> None:
    text = AnswerText()
    assert text.feed("See:\n``") == "See:\n"
    assert text.feed("`py\nprint(1)") == ""
    assert text.open == "```py\nprint(1)"
    assert text.feed("\n```") == ""
    assert text.feed("\nDone") == "```py\nprint(1)\n```\nDone"
    assert text.open == ""


@pytest.mark.parametrize(
    "fence",
    ["````\n```\ninner\n```\n````\n", "~~~\n```\n~~~\n", "- item\n    ```sh\n    ls\n    ```\n", "> ```\n> x\n> ```\n"],
)
def test_nested_and_indented_fences_close_at_their_own_marker(fence: str) -> None:
    text = AnswerText()
    settled = "".join(text.feed(character) for character in fence)
    assert settled == fence
    assert text.open == ""


def test_code_in_a_line_is_no_fence() -> None:
    text = AnswerText()
    assert text.feed("`code` and ```more``` here\nnext") == "`code` and ```more``` here\nnext"
    assert text.feed(" line") == " line"


def test_plain_text_settles_at_once_and_long_answers_take_linear_time() -> None:
    text = AnswerText()
    assert sum(len(text.feed("word ")) for _ in range(20_000)) == 100_000
