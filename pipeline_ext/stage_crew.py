"""StageCrew: the workers of one stage on one machine, from their spawning until they are ready, and their vital signs.

    arriving ──all at the door──► loading ──all StageLoaded──► warming ──all Warm──► ready

What becomes of the pipeline when a crew is lost, `pipeline` knows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from backend.vital_signs import VitalSigns
from pipeline_ext.messages import (
    Broken,
    FromStage,
    Loading,
    LoadStage,
    Pulse,
    Refused,
    StageLoaded,
    ToStage,
    Warm,
    WarmUp,
)
from pipeline_ext.peer import Peer
from pipeline_ext.pipeline_limits import PipelineLimits

Phase = Literal["arriving", "loading", "warming", "ready"]
Send = Callable[[str, ToStage], None]


class StageCrew:
    """`orders` has one for each worker. Whatever is wrong comes out of `check`, and never changes again."""

    def __init__(
        self,
        stage: int,
        peer: Peer,
        workers: tuple[str, ...],
        orders: tuple[LoadStage, ...],
        limits: PipelineLimits,
        now: float,
    ) -> None:
        self.stage, self.peer, self.workers = stage, peer, workers
        self.phase: Phase = "arriving"
        self.refused: Refused | None = None
        self.pids: dict[str, int] = {}
        self.loaded: dict[str, StageLoaded] = {}
        self.progress: dict[str, Loading] = {}
        self._orders = dict(zip(workers, orders, strict=True))
        self._warm: set[str] = set()
        self._limits = limits
        self._signs = {worker: VitalSigns(limits.signs) for worker in workers}
        self._began = self._moved = now
        self._trouble: str | None = None

    @property
    def ready(self) -> bool:
        return self.phase == "ready"

    @property
    def link(self) -> str:
        """Where rank 0 listens for the stage before."""
        return self.loaded[self.workers[0]].link

    def arrived(self, worker: str, pid: int, now: float, send: Send) -> None:
        """It is at the door; it begins to load at once."""
        self.pids[worker] = pid
        send(worker, self._orders[worker])
        self._signs[worker].beat(0.0)
        self._moved = now
        if len(self.pids) == len(self.workers):
            self._enter("loading", now)
            self._go_on(now, send)

    def hear(self, worker: str, message: FromStage, now: float, send: Send) -> None:
        """What a worker says of itself; all else is not for here."""
        match message:
            case Pulse(step_seconds=seconds):
                self._signs[worker].beat(seconds)
            case Loading():
                if self.progress.get(worker) != message:
                    self.progress[worker] = message
                    self._moved = now
            case StageLoaded():
                self.loaded[worker] = message
                self._moved = now
            case Warm():
                self._warm.add(worker)
                self._moved = now
            case Refused(what=what):
                self.refused = message
                self.lose(f"refused: {what}")
            case Broken(text=text):
                self.lose(f"failed: {text}")
            case _:
                return
        self._go_on(now, send)

    def lose(self, cause: str) -> None:
        """It cannot be used any more; the first cause is kept."""
        if self._trouble is None:
            self._trouble = f"stage {self.stage} on {self.peer.name or 'this machine'} {cause}"

    def check(self, now: float, elapsed: float) -> str | None:
        """What is wrong, `elapsed` seconds after the last check."""
        if self._trouble is not None:
            return self._trouble
        for worker in self.pids:
            complaint = self._signs[worker].check(elapsed)
            if complaint is not None:
                self.lose(f"is lost: {complaint}")
                return self._trouble
        if self.phase != "ready" and self._is_late(now):
            self.lose(f"is {self.phase} for too long")
        return self._trouble

    def _is_late(self, now: float) -> bool:
        if self.phase == "arriving":
            return now - self._began > self._limits.arrive
        return now - self._moved > self._limits.progress or now - self._began > self._limits.load

    def _enter(self, phase: Phase, now: float) -> None:
        self.phase, self._began, self._moved = phase, now, now

    def _go_on(self, now: float, send: Send) -> None:
        """Enters the next phase once all workers have done this one."""
        if self.phase == "loading" and len(self.loaded) == len(self.workers):
            self._enter("warming", now)
            for worker in self.workers:
                send(worker, WarmUp())
        if self.phase == "warming" and len(self._warm) == len(self.workers):
            self._enter("ready", now)
            slow = any("cpu" in one.device for one in self.loaded.values())
            for signs in self._signs.values():
                signs.ready(slow)
