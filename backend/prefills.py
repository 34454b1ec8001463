"""Prefills: which prefixes are being computed right now, so that nobody computes the same beside them."""

from __future__ import annotations

from backend.sequence import Sequence


class Prefills:
    """The ends of spans that running sequences' prompts will reach, by the links of their key chains.

    span: positions between the ends of prefixes that can be shared.
    """

    def __init__(self, span: int) -> None:
        self._span = span
        self._by_link: dict[bytes, Sequence] = {}
        self._ends: dict[Sequence, int] = {}

    def begin(self, sequence: Sequence) -> None:
        """It will compute its known tokens, of which `computed` are there; as far as its key chain covers them."""
        known = min(sequence.length, sequence.pages.chain.length)
        self._ends[sequence] = end = known // self._span * self._span
        for link in self._links(sequence, sequence.computed, end):
            self._by_link.setdefault(link, sequence)

    def reached(self, sequence: Sequence, start: int) -> None:
        """It has gone on from `start` to `computed`."""
        end = self._ends.get(sequence)
        if end is not None:
            self._drop(sequence, start, min(sequence.computed, end))
            if sequence.computed >= end:
                del self._ends[sequence]

    def end(self, sequence: Sequence) -> None:
        """It computes no further; without effect for one that has reached its end."""
        end = self._ends.pop(sequence, None)
        if end is not None:
            self._drop(sequence, sequence.computed, end)

    def ahead_of(self, sequence: Sequence, length: int) -> bool:
        """Whether an earlier sequence is about to compute the span of `sequence` that follows its first `length`."""
        place = (length + self._span) // sequence.pages.chain.unit - 1
        if length + self._span >= sequence.length or place >= len(sequence.pages.chain.links):
            return False
        other = self._by_link.get(sequence.pages.chain.links[place])
        return other is not None and other.key < sequence.key

    def _drop(self, sequence: Sequence, start: int, stop: int) -> None:
        for link in self._links(sequence, start, stop):
            if self._by_link.get(link) is sequence:
                del self._by_link[link]

    def _links(self, sequence: Sequence, start: int, stop: int) -> list[bytes]:
        """Those at the ends of spans in (start, stop]."""
        chain = sequence.pages.chain
        first = start // self._span * self._span + self._span
        return [chain.links[end // chain.unit - 1] for end in range(first, stop + 1, self._span)]

    def check_integrity(self) -> None:
        """Raises AssertionError where somebody is waited for who does not compute."""
        assert set(self._by_link.values()) <= self._ends.keys(), "a prefill is waited for that has ended"
