"""Revival: when a dead engine is started again, and which request is to blame. Pure decisions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RevivalPolicy:
    """How patient the supervisor is.

    Attributes:
        deaths: after this many deaths without a token between them the engine has failed, if they lie within
            `window` seconds or none of these processes became ready.
        window: see `deaths`, in seconds.
        first_delay: seconds before the second restart in a row; the first is immediate, each later one
            waits twice as long as the one before.
        longest_delay: no restart waits longer, in seconds.
        suspicions: a request that was running at this many deaths in a row, and brought no token between
            them, is ended.
    """

    deaths: int = 5
    window: float = 60.0
    first_delay: float = 0.5
    longest_delay: float = 30.0
    suspicions: int = 3


@dataclass(frozen=True, slots=True)
class Death:
    """One death of the engine process: when (monotonic seconds), and whether it had become ready before."""

    at: float
    was_ready: bool


def restart_delay(policy: RevivalPolicy, deaths: Sequence[Death]) -> float | None:
    """Seconds to wait before the next restart, or None to give up.

    `deaths` are those since the last sign of success: a token, or a request blamed and ended.
    """
    count = len(deaths)
    if count >= policy.deaths:
        last = deaths[-policy.deaths :]
        if last[-1].at - last[0].at <= policy.window or not any(death.was_ready for death in last):
            return None
    if count <= 1:
        return 0.0
    return min(policy.longest_delay, policy.first_delay * 2.0 ** min(count - 2, 30))


def admissible(policy: RevivalPolicy, suspicions: Mapping[str, int], sent: Collection[str]) -> tuple[str, ...]:
    """The requests to send to the engine now, in order, of those not `sent` yet.

    Whoever is one suspicion short of guilty is tried alone among its like: the next one follows when the
    one before has brought a token (which clears it) or has ended. So a death convicts one request, not all
    that were running.
    """

    def suspect(name: str) -> bool:
        return suspicions[name] >= policy.suspicions - 1

    waiting = [name for name in suspicions if name not in sent]
    on_trial = any(suspect(name) for name in sent)
    next_trial = [] if on_trial else [name for name in waiting if suspect(name)][:1]
    return tuple(name for name in waiting if name in next_trial or not suspect(name))


def guilty(policy: RevivalPolicy, suspicions: Mapping[str, int]) -> tuple[str, ...]:
    """Requests that were running, without bringing a token, at too many deaths in a row."""
    return tuple(name for name, count in suspicions.items() if count >= policy.suspicions)
