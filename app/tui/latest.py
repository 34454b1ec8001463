"""Latest: work on the newest of requests that come faster than they can be answered; those in between are dropped."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Request = TypeVar("Request")


class Latest(Generic[Request]):
    """One request is worked on at a time, so a slider that is held down starts no crowd of threads.

    `start` runs `run` in the background, as a Textual worker does; `work` must not raise.
    """

    def __init__(self, start: Callable[[], object], work: Callable[[Request], Awaitable[None]]) -> None:
        self._start, self._work = start, work
        self._waiting: list[Request] = []
        self._running = False

    @property
    def idle(self) -> bool:
        """Whether everything that was asked is answered."""
        return not self._running

    @property
    def overtaken(self) -> bool:
        """Whether something newer than what is worked on was asked."""
        return bool(self._waiting)

    def ask(self, request: Request) -> None:
        self._waiting[:] = [request]
        if not self._running:
            self._running = True
            self._start()

    async def run(self) -> None:
        try:
            while self._waiting:
                await self._work(self._waiting.pop())
        finally:
            self._running = False
