"""ModelOffer: a model that the wizard offers, and searching among them. Finding models is the library's. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textual.content import Content

from app.text_safety import clean_line
from app.tui.fit import words

_NAME_CELLS = 44


@dataclass(frozen=True, slots=True)
class ModelOffer:
    """One model.

    Attributes:
        parameters: None where only files are known.
        bytes: of its weights, with 16 bits a parameter or as they lie here; None where not known.
        place: "here", "starter" or "hub".
        note: how its files store the weights, or its architecture.
        also: other names that it is found by.
    """

    name: str
    parameters: int | None
    bytes: int | None
    place: str = "hub"
    note: str = ""
    also: str = ""


def search(offers: Sequence[ModelOffer], text: str) -> list[ModelOffer]:
    """Those whose name has every word of `text`; names that are it, or end with it, first, else in the given order."""
    whole, wanted = text.strip().lower(), text.lower().split()
    found = [
        offer for offer in offers if all(word in f"{offer.name} {offer.place} {offer.also}".lower() for word in wanted)
    ]
    return sorted(found, key=lambda offer: (offer.name.lower() != whole, not offer.name.lower().endswith(whole)))


def is_name(text: str) -> bool:
    """Whether the text may name a model that is not offered: `org/name`, a folder, or a .gguf file."""
    text = text.strip()
    return bool(text) and (text.endswith(".gguf") or text[0] in "./~" or all(text.partition("/")))


def line(offer: ModelOffer, width: int) -> Content:
    """Name, place, parameters, size: one row of at most `width` cells."""
    figures = f"{words.parameters(offer.parameters) if offer.parameters else '':>6}"
    figures += f" {words.memory(offer.bytes) if offer.bytes else '':>9}"
    room = max(10, min(_NAME_CELLS, width - len(figures) - 9))
    name = clean_line(offer.name, 200)
    name = name if len(name) <= room else name[: room - 1] + "…"
    return Content.assemble(
        f"{name:<{room}} ",
        (figures, "bold" if offer.place != "hub" else ""),
        (f" {'' if offer.place == 'hub' else offer.place}", "$text-success"),
    )
