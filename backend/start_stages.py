"""StartStages: how long each stage of an engine's start took, from the progress it reports."""

from __future__ import annotations

import time
from dataclasses import dataclass

from backend.engine_client import StageTime
from backend.messages import Progress


@dataclass(slots=True)
class _Stage:
    name: str
    began: float
    ended: float | None = None
    done: int = 0
    total: int = 0


class StartStages:
    """Of one engine process; the stage reported last is the one in progress."""

    def __init__(self) -> None:
        self._stages: list[_Stage] = []

    def report(self, progress: Progress) -> None:
        if not self._stages or self._stages[-1].name != progress.stage:
            self.finish()
            self._stages.append(_Stage(progress.stage, time.monotonic()))
        self._stages[-1].done, self._stages[-1].total = progress.done, progress.total

    def finish(self) -> None:
        """The stage in progress is over."""
        if self._stages and self._stages[-1].ended is None:
            self._stages[-1].ended = time.monotonic()

    def snapshot(self) -> tuple[StageTime, ...]:
        now = time.monotonic()
        return tuple(
            StageTime(
                stage=stage.name,
                seconds=(now if stage.ended is None else stage.ended) - stage.began,
                done=stage.done,
                total=stage.total,
                finished=stage.ended is not None,
            )
            for stage in self._stages
        )
