"""Watch: what `/health` said from moment to moment while something was broken."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Said:
    """One answer of `/health`, or that there was none (`status` is empty)."""

    moment: float
    status: str
    body: dict[str, Any]

    @property
    def well(self) -> bool:
        """Whether it says that all is well."""
        engine = (self.body.get("engines") or [{}])[0]
        return (
            self.status == "ready"
            and not engine.get("trouble")
            and all(rank["state"] == "ready" for rank in engine.get("ranks", ()))
        )


@dataclass
class Watch:
    """Looks ten times a second until it is told to stop."""

    url: str
    heard: list[Said] = field(default_factory=list)
    _task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Watch:
        self._task = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _look(self) -> None:
        async with httpx.AsyncClient(base_url=self.url, timeout=5.0, trust_env=False) as client:
            while True:
                try:
                    body = (await client.get("/health")).json()
                except (httpx.HTTPError, ValueError):
                    self.heard.append(Said(time.monotonic(), "", {}))
                else:
                    self.heard.append(Said(time.monotonic(), body["status"], body))
                await asyncio.sleep(LOOK_SECONDS)

    def first_trouble(self, since: float) -> float | None:
        """Seconds until it first said that something is wrong; None where it never did."""
        return next((said.moment - since for said in self.heard if said.moment >= since and not said.well), None)
