"""A hub in a thread, with everything but Ray; and a machine without hardware to ask for."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from backend.hardware.cpu import Cpu, read_cpu
from backend.hardware.machine import Machine
from backend.hardware.memory import Memory
from pipeline_ext.hub import Hub
from pipeline_ext.hub_control import HubClient, Invited, MakeInvite
from pipeline_ext.identity import Identity, head_identity
from pipeline_ext.invites import InviteLine, read_line
from pipeline_ext.ray_cluster import OrderError, RayCluster


def plain_machine() -> Machine:
    cpu: Cpu = read_cpu()
    return Machine(cpu, Memory(8 << 30, 4 << 30))


class NoRay(RayCluster):
    """Notes what it is asked; reaches whom it is told."""

    def __init__(self, address: str, changed: Callable[[], None]) -> None:
        super().__init__(address, changed)
        self.spawned: list[tuple[str, bytes]] = []
        self.killed: list[tuple[str, tuple[str, ...]]] = []
        self.renewed = 0
        self.refusal = ""

    def start(self) -> None:
        self.trouble = ""

    async def stop(self) -> None:
        pass

    def renew(self) -> None:
        self.renewed += 1

    async def spawn(self, peer: str, order: bytes) -> None:
        if self.refusal:
            raise OrderError(self.refusal)
        self.spawned.append((peer, order))

    async def kill(self, peer: str, workers: tuple[str, ...]) -> None:
        self.killed.append((peer, workers))


class RunningHub:
    """What tests ask of a hub that runs."""

    def __init__(self, hub: Hub, head: Identity, control: Path, loop: asyncio.AbstractEventLoop, port: int) -> None:
        self.hub, self.head, self.control, self.port = hub, head, control, port
        self.loop = loop
        self.client = HubClient(control, 5.0)

    @property
    def ray(self) -> NoRay:
        assert isinstance(self.hub.ray, NoRay)
        return self.hub.ray

    def invite(self, seconds: float = 60.0, uses: int = 1) -> InviteLine:
        answer = self.client.ask(MakeInvite(seconds, uses))
        assert isinstance(answer, Invited)
        return read_line(answer.line)


@contextmanager
def running_hub(folder: Path, port: int = 0, control: Path | None = None) -> Iterator[RunningHub]:
    """On loopback; what it keeps lies in `folder`, so that another one may come after it."""
    head = head_identity(folder / "head")
    control = control or folder / "hub.sock"
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    opened, found = threading.Event(), list[tuple[Hub, asyncio.AbstractEventLoop]]()

    async def run() -> None:
        hub = Hub(listener, head, control, plain_machine, NoRay)
        found.append((hub, asyncio.get_running_loop()))
        running = asyncio.create_task(hub.run())
        await hub.opened.wait()
        opened.set()
        await running

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    number = listener.getsockname()[1]
    thread.start()
    assert opened.wait(20)
    ((hub, loop),) = found
    try:
        yield RunningHub(hub, head, control, loop, number)
    finally:
        loop.call_soon_threadsafe(hub.stop)
        thread.join(20)
        assert not thread.is_alive()
