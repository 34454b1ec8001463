"""Searching models, and telling names from words."""

from __future__ import annotations

import pytest

from app.tui.fit.offers import ModelOffer, is_name, line, search
from app.tui.wizard_library import offer_of
from backend.library.model_table import catalogue

OFFERS = (
    ModelOffer("starter", 134_515_008, 269_030_016, "starter"),
    ModelOffer("org/Large-70B-FP8", 70_000_000_000, 140_000_000_000, also="Big Seventy"),
    ModelOffer("org/Large-70B", 70_000_000_000, 140_000_000_000),
    ModelOffer("/folder/\x1b[2Jmine", None, 5_000_000, "here"),
)


def names(text: str) -> list[str]:
    return [offer.name for offer in search(OFFERS, text)]


def test_every_word_counts_and_an_exact_name_comes_first() -> None:
    assert names("70b fp8") == ["org/Large-70B-FP8"]
    assert names("org/large-70b") == ["org/Large-70B", "org/Large-70B-FP8"]
    assert names("large-70b") == ["org/Large-70B", "org/Large-70B-FP8"]
    assert names("seventy") == ["org/Large-70B-FP8"]
    assert names("here") == ["/folder/\x1b[2Jmine"]
    assert names("nothing like it") == []
    assert len(names("")) == len(OFFERS)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("org/name", True),
        ("./model", True),
        ("~/m", True),
        ("x.gguf", True),
        ("llama", False),
        ("org/", False),
        ("", False),
    ],
)
def test_names_that_may_be_looked_up(text: str, name: bool) -> None:
    assert is_name(text) is name


@pytest.mark.parametrize("width", [40, 58, 120])
def test_lines_fit_and_steer_no_terminal(width: int) -> None:
    for offer in OFFERS:
        text = line(offer, width).plain
        assert len(text) <= width
        assert "\x1b" not in text
    assert "70B" in line(OFFERS[1], 58).plain
    assert "130 GiB" in line(OFFERS[1], 58).plain


def test_the_catalogue_is_offered_with_sizes() -> None:
    offers = [offer_of(model) for model in catalogue()]
    assert len(offers) >= 80
    assert all(offer.parameters and offer.bytes == 2 * offer.parameters for offer in offers)
