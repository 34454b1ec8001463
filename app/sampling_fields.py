"""The sampling fields a person can set: their limits, their reading from text, and a sentence on each. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

from app.client import SamplingChoice


@dataclass(frozen=True, slots=True)
class SamplingField:
    """One field; an empty text leaves the value to the model's default."""

    name: str
    label: str
    low: float
    high: float
    whole: bool
    help: str

    def read(self, text: str) -> float | int | None:
        """The value that `text` stands for.

        Raises:
            ValueError: it is no number or outside the limits; the text says which.
        """
        text = text.strip()
        if not text:
            return None
        try:
            value = int(text) if self.whole else float(text)
        except ValueError:
            kind = "a whole number" if self.whole else "a number"
            raise ValueError(f"{self.label}: {kind}, please") from None
        if not isfinite(value) or not self.low <= value <= self.high:
            raise ValueError(f"{self.label}: from {self.low:g} to {self.high:g}")
        return value


FIELDS = (
    SamplingField("temperature", "Temperature", 0, 2, False, "0 always takes the likeliest token; 1 is natural"),
    SamplingField("top_p", "Top p", 0.0001, 1, False, "Keep the likeliest tokens up to this probability; 1 keeps all"),
    SamplingField("top_k", "Top k", 1, 1000, True, "Keep this many of the likeliest tokens"),
    SamplingField("min_p", "Min p", 0, 1, False, "Drop tokens less likely than this share of the likeliest"),
    SamplingField("max_tokens", "Max tokens", 1, 1_000_000, True, "End the answer after this many tokens"),
    SamplingField("seed", "Seed", 0, 2**63 - 1, True, "The same seed draws the same answer again"),
    SamplingField("repetition_penalty", "Repetition", 0.01, 2, False, "Above 1, tokens seen before become less likely"),
    SamplingField("presence_penalty", "Presence", -2, 2, False, "Above 0, the answer moves to new words"),
    SamplingField("frequency_penalty", "Frequency", -2, 2, False, "Above 0, often used words become less likely"),
)


def read_all(texts: Mapping[str, str]) -> SamplingChoice:
    """The choice that these texts by field name stand for.

    Raises:
        ValueError: the first text that cannot be read, in words.
    """
    return SamplingChoice(**{field.name: field.read(texts.get(field.name, "")) for field in FIELDS})  # type: ignore[arg-type]
