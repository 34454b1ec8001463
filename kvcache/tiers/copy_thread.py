"""CopyThread: copies between device and host memory, one behind the other, beside the thread that computes."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kvcache.tiers.lane import Lane

_log = logging.getLogger("shardwise.tiers")


@dataclass(frozen=True, slots=True, eq=False)
class Copy:
    """Bytes from `source` to `target`, after the device's work before `mark`."""

    target: Tensor
    source: Tensor
    mark: Any


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A copy, or none, then `done(seconds)` or, where it raised, `failed()`; both are called by the copy thread."""

    copy: Copy | None
    done: Callable[[float], None]
    failed: Callable[[], None]


class CopyThread:
    """Steps happen in the order in which they were queued."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._steps: deque[Step] = deque()
        self._ended = False
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="pages", daemon=True)
        self._thread.start()

    def queue(self, step: Step) -> None:
        with self._change:
            self._steps.append(step)
            self._change.notify()

    def close(self, patience: float) -> bool:
        """Drops what has not begun; False where a copy still runs after `patience` seconds."""
        with self._change:
            self._ended = True
            self._steps.clear()
            self._change.notify()
        self._thread.join(patience)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while steps := self._next():
            begun = time.perf_counter()
            outcomes = self._carry_out(steps)
            seconds = (time.perf_counter() - begun) / len(steps)
            for step, copied in zip(steps, outcomes, strict=True):
                if copied:
                    step.done(seconds)
                else:
                    step.failed()

    def _next(self) -> list[Step]:
        """The next ones, as many as the lane takes at once; none at the end."""
        with self._change:
            self._change.wait_for(lambda: self._steps or self._ended)
            return [self._steps.popleft() for _ in range(min(self._lane.burst, len(self._steps)))]

    def _carry_out(self, steps: list[Step]) -> list[bool]:
        """Which of them succeeded."""
        copied = [self._begin(step) for step in steps]
        try:
            self._lane.finish()
        except Exception:  # noqa: BLE001 - the edge of a thread: transfers fail; who computes sees a lost device
            _log.exception("copies of pages failed")
            return [False] * len(steps)
        return copied

    def _begin(self, step: Step) -> bool:
        try:
            if step.copy is not None:
                self._lane.copy(step.copy.target, step.copy.source, step.copy.mark)
        except Exception:  # noqa: BLE001 - as above
            _log.exception("a copy of a page failed")
            return False
        return True
