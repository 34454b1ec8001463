"""MeasuredRank: what one rank's memory turned out to be, by the Plan's own terms. Measuring it is `memory_meter`'s."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from backend.planner.plan import MemoryTerm, Rank

# A term that differs by less is no news, whatever its share: libraries alone differ so between machines.
_NOTED_BYTES = 32 << 20
_NOTED_SHARE = 0.1


class MeasuredRank(Struct, frozen=True):
    """One rank's memory as measured, on its device: main memory for a processor, the GPU's own for a GPU.

    Attributes:
        device: as torch names it.
        terms: named and ordered as the Plan's of this rank. kv and host cache are what was allocated; activations the
            peak so far.
        untouched: bytes of kv and host cache that the system has not backed with memory yet, because no page there was
            ever written.
        resident: bytes held now. On a processor those of the process that the system backs with memory, shared ones
            included (Rss); on a GPU what the driver counts as this process', or, where it does not tell, as used.
        proportional: on a processor, the same with shared memory divided among those who share it (Pss); None
            where the system does not tell.
    """

    rank: int
    device: str
    terms: tuple[MemoryTerm, ...]
    resident: int
    untouched: int = 0
    proportional: int | None = None

    @property
    def total(self) -> int:
        """The sum of the terms: what the rank takes at most once all its pages were written."""
        return sum(term.bytes for term in self.terms)


def differences(planned: Sequence[Rank], measured: Sequence[MeasuredRank]) -> list[str]:
    """What a person should know: a line for each rank that took, in all, over a tenth more or less than planned."""
    lines: list[str] = []
    for plan, rank in zip(planned, measured, strict=False):
        expected = sum(term.bytes for term in plan.memory)
        if not expected or abs(rank.total - expected) <= max(_NOTED_BYTES, _NOTED_SHARE * expected):
            continue
        was = {term.name: term.bytes for term in plan.memory}
        worst = max(rank.terms, key=lambda term: abs(term.bytes - was.get(term.name, 0)))
        lines.append(
            f"Memory of rank {rank.rank} ({rank.device}): {rank.total >> 20} MiB measured, {expected >> 20} MiB "
            f"planned; most of it in {worst.name}: {worst.bytes >> 20} MiB, planned {was.get(worst.name, 0) >> 20} MiB."
        )
    return lines
