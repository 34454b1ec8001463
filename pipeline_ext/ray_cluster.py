"""RayCluster: Ray's head and the driver beside it, kept up by the hub; passes orders to peers. On an event loop.

Where either dies, both are started again as a new generation, whose nodes the peers start when they hear of it. What
stages run meanwhile runs on.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import structlog

from backend.frames import framed
from pipeline_ext.hub_messages import BadFrameError, RayEntry, read_frame
from pipeline_ext.ray_driver import (
    ORDER_SECONDS,
    FromDriver,
    NodesNow,
    Passed,
    PassKill,
    PassSpawn,
    encoder,
    from_driver,
)
from pipeline_ext.ray_node import RayNode, RayStartError
from pipeline_ext.ray_settings import NoPortsError, head_arguments, own_environment, ray_environment

_FRAME = 4 * 1024 * 1024
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0

log = structlog.get_logger("shardwise.hub")


class OrderError(RuntimeError):
    """An order was not passed on, or not obeyed; says why."""


class RayCluster:
    """`entry` is what peers have to know of the present generation; None while there is none.

    Args:
        address: of the chosen interface.
        changed: called when `entry`, `trouble` or `reached` have changed.
    """

    def __init__(self, address: str, changed: Callable[[], None]) -> None:
        self._address, self._changed = address, changed
        self.entry: RayEntry | None = None
        self.trouble = "Ray is starting"
        self.reached: frozenset[str] = frozenset()
        self.ports: tuple[int, ...] = ()
        self._generation = 0
        self._numbers = 0
        self._answers: dict[int, asyncio.Future[str]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None
        self._renew = asyncio.Event()

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def renew(self) -> None:
        """Ends this generation and its token, which somebody holds who shall not any more; another one follows."""
        self._renew.set()

    async def spawn(self, peer: str, order: bytes) -> None:
        """Raises OrderError, after some seconds at most."""
        await self._pass(lambda number: PassSpawn(number, peer, order))

    async def kill(self, peer: str, workers: tuple[str, ...]) -> None:
        """Raises OrderError, after some seconds at most."""
        await self._pass(lambda number: PassKill(number, peer, workers))

    async def _pass(self, make: Callable[[int], PassSpawn | PassKill]) -> None:
        if self._writer is None:
            raise OrderError(self.trouble or "Ray is away")
        self._numbers += 1
        number = self._numbers
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(framed(encoder.encode(make(number))))
            async with asyncio.timeout(ORDER_SECONDS + 1):
                trouble = await answer
        except (TimeoutError, OSError):
            raise OrderError("Ray did not answer in time") from None
        finally:
            self._answers.pop(number, None)
        if trouble:
            raise OrderError(trouble)

    async def _keep(self) -> None:
        pause = _SHORTEST_PAUSE
        while True:
            self._generation += 1
            stood = asyncio.get_running_loop().time()
            try:
                await self._generation_of(RayNode(secrets.token_hex(32), self._generation - 1))
            except (RayStartError, NoPortsError, OSError) as error:
                self._say(f"Ray did not start: {error}")
                log.warning("Ray did not start", why=str(error))
            if self._renew.is_set():
                self._renew.clear()
                continue
            await asyncio.sleep(pause)
            stood_long = asyncio.get_running_loop().time() - stood > 60
            pause = _SHORTEST_PAUSE if stood_long else min(_LONGEST_PAUSE, pause * 2)

    async def _generation_of(self, node: RayNode) -> None:
        """From the start of one head to its end."""
        driver: asyncio.subprocess.Process | None = None
        try:
            await node.start(lambda ports, folder: head_arguments(self._address, ports, folder))
            head = f"{self._address}:{node.ports.head}"
            driver, reader = await self._start_driver(node, head)
            self.ports = node.ports.wildcard(head=True)
            self.entry = RayEntry(self._generation, head, node.token_file.read_text())
            self._say("")
            log.info("Ray is up", generation=self._generation, address=head)
            await _first(node.ended(), self._listen(reader), self._renew.wait())
        finally:
            self.entry, self.reached, self.ports = None, frozenset(), ()
            self._hang_up()
            self._say("Ray is being started again")
            if driver is not None and driver.returncode is None:
                driver.send_signal(signal.SIGKILL)
                await driver.wait()
            await asyncio.shield(asyncio.create_task(node.stop()))

    async def _start_driver(self, node: RayNode, head: str) -> tuple[asyncio.subprocess.Process, asyncio.StreamReader]:
        near, far = socket.socketpair()
        with far:
            near.setblocking(False)
            reader, self._writer = await asyncio.open_connection(sock=near)
            driver = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "pipeline_ext.ray_driver", str(far.fileno()), head, self._address),
                pass_fds=(far.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,
                env=ray_environment(own_environment(), node.token_file),
            )
        return driver, reader

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        """Until the driver is gone. What it says has a schema, as it is a process that unpickles what Ray brings."""
        with contextlib.suppress(BadFrameError, OSError, msgspec.MsgspecError):
            while (body := await read_frame(reader, _FRAME)) is not None:
                self._hear(from_driver.decode(body))

    def _hear(self, message: FromDriver) -> None:
        match message:
            case NodesNow():
                before, self.reached = self.reached, frozenset(message.peers)
                if before != self.reached:
                    self._changed()
            case Passed():
                answer = self._answers.get(message.number)
                if answer is not None and not answer.done():
                    answer.set_result(message.trouble)

    def _hang_up(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        for answer in self._answers.values():
            if not answer.done():
                answer.set_result("Ray went away")

    def _say(self, trouble: str) -> None:
        self.trouble = trouble
        self._changed()


async def _first(*waits: Coroutine[Any, Any, Any]) -> None:
    """Until one of them is done; the others are given up."""
    tasks = [asyncio.ensure_future(each) for each in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
