"""Failover: what is to be done about a stage that is lost, or whose machine leaves: a pure decision over plain data.

1 a spare machine with room            Replace
2 one that has a stage, or the head,
  with room for a second worker        Replace
3 fewer stages fit what is left        Replan
4 a machine may come back, or room     Wait, up to a limit
5 nothing of all this                  GiveUp
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from pipeline_ext.peer import Health

HEAD = ""


class StageNeed(Struct, frozen=True):
    """What a stage takes: bytes of each rank, on a GPU each, or all in one processor's memory."""

    ranks: tuple[int, ...]
    on_gpu: bool = False


class Candidate(Struct, frozen=True):
    """One machine that is known.

    Attributes:
        peer: its id; empty for the head itself.
        name: for people.
        memory: bytes of main memory that a new worker could take.
        gpus: the same of each GPU.
        stages: those that it has now, the one in question left out.
        latency: seconds to it.
        failures: how often this stage could not be brought up there of late; `retry_at` is when to try again.
        refused: it has said no of late, for a reason that does not pass at once.
    """

    peer: str
    name: str
    health: Health
    memory: int
    gpus: tuple[int, ...] = ()
    stages: tuple[int, ...] = ()
    latency: float = 0.0
    failures: int = 0
    retry_at: float = 0.0
    refused: bool = False


class Situation(Struct, frozen=True):
    """A stage without workers, or whose machine is leaving.

    Attributes:
        now, since: monotonic seconds; when it was lost.
        home: the machine that had it last.
        most_failures: after so many a machine is not tried any more for this stage.
        wait: seconds after `since` for which to wait for a machine.
        replan: whether a plan over the machines that are alive exists; only looked at where no machine has room.
        leaving: whether the stage still serves, and only its machine wants to go.
    """

    stage: int
    need: StageNeed
    candidates: tuple[Candidate, ...]
    now: float
    since: float
    home: str
    most_failures: int
    wait: float
    replan: bool
    leaving: bool = False


class Replace(Struct, frozen=True):
    """Bring the stage up there."""

    stage: int
    peer: str
    reason: str


class Replan(Struct, frozen=True):
    """Start the engine again with another plan."""

    reason: str


class Wait(Struct, frozen=True):
    """Ask again at this time, or when a machine has come."""

    until: float
    reason: str


class GiveUp(Struct, frozen=True):
    """There is nothing left to try."""

    reason: str


Decision = Replace | Replan | Wait | GiveUp

# How long to wait until the machines are looked at again.
LOOK_SECONDS = 1.0


def has_room(need: StageNeed, candidate: Candidate) -> bool:
    """Whether the ranks of a stage fit what is free there: each on a GPU of its own, or together in main memory."""
    if not need.on_gpu:
        return sum(need.ranks) <= candidate.memory
    free = sorted(candidate.gpus, reverse=True)
    wanted = sorted(need.ranks, reverse=True)
    return len(wanted) <= len(free) and all(rank <= gpu for rank, gpu in zip(wanted, free, strict=False))


def decide(situation: Situation) -> Decision:
    """The first rung of the ladder that holds."""
    usable = [one for one in situation.candidates if _is_usable(one, situation)]
    ready = [one for one in usable if one.retry_at <= situation.now]
    if ready:
        best = min(ready, key=lambda one: _order(one, situation))
        return Replace(situation.stage, best.peer, _why(best, situation))
    if situation.leaving and not usable and not situation.replan:
        return Wait(situation.now + LOOK_SECONDS, f"{_stage(situation)} stays until another machine has room for it")
    if situation.replan and not usable:
        return Replan(f"no machine has room for {_stage(situation)}, so it is planned anew over those that are left")
    return _wait(situation, usable)


def _wait(situation: Situation, usable: Sequence[Candidate]) -> Wait | GiveUp:
    """Machines that failed a moment ago are tried again; others may come back."""
    limit = situation.since + situation.wait
    if situation.now < limit or situation.leaving:
        soonest = min((one.retry_at for one in usable), default=situation.now + LOOK_SECONDS)
        until = max(situation.now, min(soonest, situation.now + LOOK_SECONDS))
        return Wait(until, f"{_stage(situation)} waits for a machine: {_complaints(situation)}")
    return GiveUp(
        f"no machine could take {_stage(situation)} within {situation.wait:.0f} s, and fewer stages do not fit: "
        f"{_complaints(situation)}"
    )


def _is_usable(one: Candidate, situation: Situation) -> bool:
    return (
        one.health == "alive"
        and not one.refused
        and one.failures < situation.most_failures
        and has_room(situation.need, one)
    )


def _order(one: Candidate, situation: Situation) -> tuple[int, int, float, int, str]:
    """Spares first, and of those the one that has just lost the stage last: nobody knows yet what is wrong there."""
    spare = not one.stages and one.peer != HEAD
    rung = (1 if one.peer == situation.home else 0) if spare else 2
    return rung, one.failures, one.latency, -(sum(one.gpus) if situation.need.on_gpu else one.memory), one.peer


def _why(best: Candidate, situation: Situation) -> str:
    rung = "it is free" if not best.stages and best.peer != HEAD else "no other machine is free, and it has room"
    return f"{_stage(situation)} goes to {_name(best)}: {rung}"


def _complaints(situation: Situation) -> str:
    """Why each machine will not do."""
    words = [f"{_name(one)} {_complaint(one, situation)}" for one in situation.candidates]
    return "; ".join(words) or "there is none"


def _complaint(one: Candidate, situation: Situation) -> str:
    if one.health != "alive":
        return f"is {one.health}"
    if one.refused:
        return "has refused it"
    if not has_room(situation.need, one):
        return f"has not the {_gib(sum(situation.need.ranks))} that it takes"
    if one.failures >= situation.most_failures:
        return f"has failed {one.failures} times"
    return "has just failed, and is tried again"


def _name(one: Candidate) -> str:
    return one.name or one.peer or "the head"


def _stage(situation: Situation) -> str:
    return f"stage {situation.stage}"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
