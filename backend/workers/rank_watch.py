"""RankWatch: notices that a rank is dead, frozen, hung or broken, kills all of them, and says which one is to blame.

killed by a signal      at once
silent, or a long step  as VitalSigns judges
left with a last word   after a moment, in which another may turn out to be the first: a rank whose collective broke
                        off leaves because somebody else has died
"""

from __future__ import annotations

import selectors
import threading
import time
from collections.abc import Sequence

import msgspec

from backend.exit_status import describe_exit
from backend.frames import FrameReader
from backend.vital_signs import VitalLimits, VitalSigns
from backend.workers.worker_child import WorkerChild
from backend.workers.worker_messages import Broken, Pulse, from_heart_decoder

# A little sooner than the server judges the engine by its own limits, so that the rank is named.
LIMITS = VitalLimits(silence=2.0, step=27.0, slow_step=270.0, step_factor=9.0)
# How long a rank that left with a last word is not blamed yet.
MOMENT = 0.4


class RankWatch:
    """A thread of its own over all ranks of an engine, from their spawning to `close`."""

    def __init__(self, children: Sequence[WorkerChild], limits: VitalLimits = LIMITS) -> None:
        self._children = children
        self._limits = limits
        self._signs = [VitalSigns(limits) for _ in children]
        self._readers = [FrameReader(child.pulse) for child in children]
        self._words: dict[int, str] = {}
        self._suspect: tuple[float, str] | None = None
        self._guard = threading.Lock()
        self._cause: str | None = None
        self._lost = threading.Event()
        self._ended = threading.Event()
        self._selector = selectors.DefaultSelector()
        for child in children:
            self._selector.register(child.pulse, selectors.EVENT_READ, child.rank)
        self._thread = threading.Thread(target=self._watch, name="ranks", daemon=True)
        self._thread.start()

    @property
    def cause(self) -> str | None:
        """Why the ranks are lost: which one, and what happened to it; None while all is well. Never changes again."""
        return self._cause

    def ready(self, slow: bool) -> None:
        """All ranks have started: none may be silent for long from now on."""
        for signs in self._signs:
            signs.ready(slow)

    def lose(self, cause: str) -> None:
        """Kills all ranks. The first cause is kept."""
        with self._guard:
            if self._cause is not None or self._ended.is_set():
                return
            self._cause = cause
        for child in self._children:
            child.kill()
        self._lost.set()

    def verdict(self, patience: float) -> str | None:
        """The cause, after waiting up to so many seconds for one."""
        self._lost.wait(patience)
        return self._cause

    def close(self) -> None:
        """Stops watching: what ends now was meant to."""
        with self._guard:
            self._ended.set()
        self._thread.join()
        self._selector.close()

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._ended.is_set() and self._cause is None:
            for key, _ in self._selector.select(self._tick()):
                self._hear(key.data)
            now = time.monotonic()
            self._judge(now, now - last)
            last = now

    def _tick(self) -> float:
        return self._limits.tick if self._suspect is None else MOMENT / 8

    def _hear(self, rank: int) -> None:
        child, reader = self._children[rank], self._readers[rank]
        try:
            if reader.receive():
                while (body := reader.take()) is not None:
                    self._take_in(rank, from_heart_decoder.decode(body))
                return
        except (OSError, ValueError, msgspec.MsgspecError):
            child.kill()
        self._selector.unregister(child.pulse)
        self._end(child)

    def _take_in(self, rank: int, message: Pulse | Broken) -> None:
        match message:
            case Pulse(step_seconds=step):
                self._signs[rank].beat(step)
            case Broken(text=text):
                self._words[rank] = text

    def _end(self, child: WorkerChild) -> None:
        """A heart has stopped: by a signal, or the process left by itself."""
        if child.end_of(1.0) is None:
            child.kill()
            child.end_of(1.0)
        status = child.exit_status
        if status is not None and status < 0:
            return self.lose(f"{child.name} {describe_exit(status)}")
        if self._suspect is None:
            word = self._words.get(child.rank)
            text = f"failed: {word}" if word else describe_exit(status or 0)
            self._suspect = time.monotonic(), f"{child.name} {text}"

    def _judge(self, now: float, elapsed: float) -> None:
        for child, signs in zip(self._children, self._signs, strict=True):
            complaint = signs.check(elapsed)
            if complaint is not None and child.exit_status is None:
                return self.lose(f"{child.name}: {complaint}")
        if self._suspect is not None and now - self._suspect[0] >= MOMENT:
            self.lose(self._suspect[1])
