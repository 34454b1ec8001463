"""Membership: which machines belong to a hub and how they are, from what is heard of them. Pure; no clock, no sockets.

    joined ─► alive ◄──heard──► silent ──limit──► lost ──joined, a higher incarnation──► alive
                │ leave                                       any ──remove──► unknown
                ▼
              leaving

A machine counts its incarnations: each start of its agent is one. What is said of an earlier one is stale and ignored,
so that messages of a line that is long broken, and those of a twin, change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline_ext.peer import Health


@dataclass(frozen=True, slots=True)
class MembershipLimits:
    """Seconds of silence after which a machine is silent, and lost; `tick` is how often somebody looks."""

    silent: float = 3.0
    lost: float = 10.0
    tick: float = 0.5


@dataclass(slots=True)
class _Member:
    incarnation: int
    quiet: float = 0.0
    leaving: bool = False
    lost: bool = False


class Membership:
    """Of one hub; used from one thread."""

    def __init__(self, limits: MembershipLimits = MembershipLimits()) -> None:
        self._limits = limits
        self._members: dict[str, _Member] = {}
        self._removed: dict[str, int] = {}

    def joined(self, peer: str, incarnation: int) -> bool:
        """It has come, for the first time or again. False for one that is stale: that line is to be closed."""
        member = self._members.get(peer)
        known = self._removed.get(peer, -1) if member is None else member.incarnation
        if incarnation <= known:
            return False
        self._removed.pop(peer, None)
        self._members[peer] = _Member(incarnation)
        return True

    def heard(self, peer: str, incarnation: int) -> bool:
        """A sign of life. False for one that is stale, unknown or was given up: it has to join again."""
        member = self._current(peer, incarnation)
        if member is None or member.lost:
            return False
        member.quiet = 0.0
        return True

    def gone(self, peer: str, incarnation: int) -> None:
        """Its line was closed: it counts as silent at once."""
        member = self._current(peer, incarnation)
        if member is not None:
            member.quiet = max(member.quiet, self._limits.silent + self._limits.tick)

    def leave(self, peer: str) -> bool:
        """It shall go as soon as nothing needs it. False for one that is not known."""
        member = self._members.get(peer)
        if member is None:
            return False
        member.leaving = True
        return True

    def remove(self, peer: str) -> bool:
        """It does not belong here any more; it may be invited again, as a later incarnation."""
        member = self._members.pop(peer, None)
        if member is None:
            return False
        self._removed[peer] = member.incarnation
        return True

    def passed(self, elapsed: float) -> list[str]:
        """So many seconds have passed: who is lost since. A late call means that we stood still ourselves, with what
        was said unread: at most two ticks count as silence."""
        counted = min(elapsed, 2 * self._limits.tick)
        lost: list[str] = []
        for peer, member in self._members.items():
            member.quiet += counted
            if member.quiet > self._limits.lost and not member.lost:
                member.lost = True
                lost.append(peer)
        return lost

    def health(self, peer: str) -> Health | None:
        """None for one that is not known."""
        member = self._members.get(peer)
        if member is None:
            return None
        if member.lost:
            return "lost"
        if member.quiet > self._limits.silent:
            return "silent"
        return "leaving" if member.leaving else "alive"

    def incarnation(self, peer: str) -> int | None:
        """The one that counts; None for a machine that is not known."""
        member = self._members.get(peer)
        return None if member is None else member.incarnation

    @property
    def members(self) -> tuple[str, ...]:
        """All that are known, in order of their coming."""
        return tuple(self._members)

    def _current(self, peer: str, incarnation: int) -> _Member | None:
        member = self._members.get(peer)
        return member if member is not None and member.incarnation == incarnation else None
