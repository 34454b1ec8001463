"""Engines on standby: started once the main one serves; one that cannot start is a warning, not the server's end."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from starlette.applications import Starlette

from app.serve import ServerProcess
from tests.fakes.engine_client import FakeEngine


class Main(FakeEngine):
    """Ready when it is let."""

    def __init__(self) -> None:
        super().__init__("main", state="starting")
        self.let = asyncio.Event()

    async def start(self) -> None:
        pass

    async def wait_ready(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 (the contract's)
        await self.let.wait()
        self.state = "ready"
        return True


class Spare(FakeEngine):
    def __init__(self, fails: bool) -> None:
        super().__init__("spare", state="starting", error="It does not fit.")
        self.fails, self.started = fails, asyncio.Event()

    async def start(self) -> None:
        self.state = "failed" if self.fails else "ready"
        self.started.set()


@pytest.mark.parametrize("fails", [False, True])
async def test_it_starts_after_the_main_engine(fails: bool, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    said: list[str] = []
    main, spare = Main(), Spare(fails)
    process = ServerProcess({"main": main}, Starlette, listener, 5.0, said.append, standby={"spare": spare})
    running = asyncio.create_task(process.run())
    while not said:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert not spare.started.is_set()
    main.let.set()
    await spare.started.wait()
    while len(said) < 3:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    expected = "Warning: the fallback spare is not served. It does not fit." if fails else "The fallback spare is ready"
    assert said[2].startswith(expected)
    assert not running.done()
    process._signalled()
    assert await running == 0
    assert spare.state == "failed"
