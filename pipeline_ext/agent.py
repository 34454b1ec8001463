"""Agent: a peer's own process: holds the line to the hub, beats, and keeps this machine's Ray node as the hub says.

It runs in the foreground and says in plain lines what happens. The stages that run here are not its children: they go
on when the agent, the hub or Ray is away.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from backend.engine_environment import process_environment
from backend.errors import ShardwiseError
from backend.hardware.machine import Machine, read_machine
from backend.kernel_cache import COMPILER, kernel_cache, kernels_missing
from pipeline_ext.hub_messages import (
    PEER_FRAME,
    BadFrameError,
    Beat,
    Hello,
    HubMessage,
    Leaving,
    MachineNow,
    NotWelcome,
    Ping,
    Pong,
    RayEntry,
    Released,
    ToPeer,
    Welcome,
    decoded,
    encoded,
    read_frame,
    to_peer,
)
from pipeline_ext.hub_messages import (
    RayNode as RayNodeTold,
)
from pipeline_ext.identity import Identity, client_context, server_name
from pipeline_ext.own_version import own_version
from pipeline_ext.ray_node import RayNode, RayStartError
from pipeline_ext.ray_settings import NoPortsError, peer_arguments, port_words

BEAT_SECONDS = 1.0
# The hub beats each second: longer silence is a broken line.
SILENCE_SECONDS = 8.0
MACHINE_SECONDS = 15.0
LEAVE_SECONDS = 120.0
_CONNECT_SECONDS = 8.0
_LONGEST_PAUSE = 15.0


class NotWelcomeError(ShardwiseError):
    """The hub does not take this machine (any more)."""

    code = "not_welcome"


class HeadPlace(Struct, frozen=True):
    """Where the hub is, kept beside the identity."""

    address: str
    port: int

    def keep(self, folder: Path) -> None:
        path = folder / "head.json"
        path.write_bytes(msgspec.json.encode(self))
        path.chmod(0o600)


def read_head(folder: Path) -> HeadPlace | None:
    try:
        return msgspec.json.decode((folder / "head.json").read_bytes(), type=HeadPlace)
    except (OSError, msgspec.MsgspecError):
        return None


class Agent:
    """Args:
    say: told each line that people should read.
    read: how this machine is read; tests put another in its place.
    measure: reads it once, and takes its time.
    """

    def __init__(
        self,
        identity: Identity,
        head: HeadPlace,
        say: Callable[[str], None],
        read: Callable[[], Machine] = read_machine,
        measure: Callable[[], Machine] | None = None,
    ) -> None:
        self._measure = measure
        self._identity, self._head, self._say, self._read = identity, head, say, read
        self._writer: asyncio.StreamWriter | None = None
        self._address = ""
        self._heard_welcome = False
        self._leaving, self._released = asyncio.Event(), asyncio.Event()
        self._compiled = False
        self._node: RayNode | None = None
        self._entry: RayEntry | None = None
        self._entry_changed = asyncio.Event()
        self._ray_told = RayNodeTold(0, "Ray is starting there", ())
        self._failure: ShardwiseError | None = None

    async def run(self) -> None:
        """Until it was released, or the hub says that it does not belong there. Raises NotWelcomeError."""
        beside = [asyncio.create_task(self._keep_line()), asyncio.create_task(self._keep_ray())]
        try:
            await self._released.wait()
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            self._hang_up()
            if self._node is not None:
                await self._node.stop()
        if self._failure is not None:
            raise self._failure

    def leave(self) -> None:
        """Politely: asks the hub, and goes when nothing needs it, or after a while; the second time at once."""
        if self._leaving.is_set():
            self._released.set()
            return
        self._leaving.set()
        if self._writer is None:
            self._say("Leaving; the hub is away.")
            self._released.set()
            return
        self._say("Leaving as soon as nothing runs here any more; Ctrl+C once more to go at once.")
        self._tell(Leaving())
        asyncio.get_running_loop().call_later(LEAVE_SECONDS, self._released.set)

    async def _keep_line(self) -> None:
        pause, said_away = 0.5, False
        while not self._released.is_set():
            self._heard_welcome = False
            try:
                await self._line()
                why = "it hung up"
            except (BadFrameError, OSError, TimeoutError) as error:
                why = str(error) or "it does not answer"
            self._hang_up()
            if self._heard_welcome:
                pause, said_away = 0.5, False
            if not said_away and not self._released.is_set():
                self._say(f"The hub at {self._head.address}:{self._head.port} is away ({why}); what runs here goes on.")
                said_away = True
            if self._leaving.is_set():
                self._released.set()
            await asyncio.sleep(pause)
            pause = min(_LONGEST_PAUSE, pause * 1.7)

    async def _line(self) -> None:
        """One connection, from the greeting to its end."""
        async with asyncio.timeout(_CONNECT_SECONDS):
            reader, writer = await asyncio.open_connection(
                self._head.address,
                self._head.port,
                ssl=client_context(self._identity),
                server_hostname=server_name(""),
                ssl_shutdown_timeout=1.0,
                limit=PEER_FRAME,
            )
        self._writer, self._address = writer, str(writer.get_extra_info("sockname")[0])
        self._tell(Hello(own_version(), await asyncio.to_thread(self._read)))
        beside = [asyncio.create_task(self._beat()), asyncio.create_task(self._tell_machine())]
        try:
            while True:
                async with asyncio.timeout(SILENCE_SECONDS):
                    body = await read_frame(reader, PEER_FRAME)
                if body is None:
                    return
                self._hear(decoded(to_peer, body))
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)

    def _hear(self, message: ToPeer) -> None:
        match message:
            case Ping(number):
                self._tell(Pong(number))
            case Welcome(name):
                self._heard_welcome = True
                self._say(f"Connected to {self._head.address}:{self._head.port} as {name}.")
                self._tell(self._ray_told)
                if self._leaving.is_set():
                    self._tell(Leaving())
            case RayEntry():
                if self._entry != message:
                    self._entry = message
                    self._entry_changed.set()
            case NotWelcome(why, final):
                if final:
                    self._give_up(why)
            case Released(removed):
                if removed:
                    self._give_up("The head has removed it.")
                elif self._leaving.is_set():
                    self._say("Nothing needs this machine any more.")
                    self._released.set()
            case Beat():
                pass

    def _give_up(self, why: str) -> None:
        self._failure = NotWelcomeError(
            "This machine is not a peer any more",
            why,
            "To join again: shardwise peers invite, on the head.",
        )
        self._released.set()

    async def _beat(self) -> None:
        import psutil

        while True:
            self._tell(Beat(psutil.virtual_memory().available))
            await asyncio.sleep(BEAT_SECONDS)

    async def _tell_machine(self) -> None:
        if self._measure is not None:
            self._tell(MachineNow(await asyncio.to_thread(self._measure)))
            self._measure = None
        while True:
            await asyncio.sleep(MACHINE_SECONDS)
            self._tell(MachineNow(await asyncio.to_thread(self._read)))

    async def _keep_ray(self) -> None:
        """A node of the hub's present generation; tried again where it does not start or ends."""
        pause = 1.0
        while True:
            while self._entry is None:
                await self._wait_for_entry(None)
            entry = self._entry
            self._entry_changed.clear()
            try:
                await self._start_node(entry)
                pause = 1.0
                await self._node_or_entry()
            except (RayStartError, NoPortsError, OSError) as error:
                self._tell_ray(entry, f"Ray did not start there: {error}", ())
                self._say(f"Ray did not start: {error}")
                await self._wait_for_entry(pause)
                pause = min(_LONGEST_PAUSE, pause * 2)
            finally:
                node, self._node = self._node, None
                if node is not None:
                    await asyncio.shield(asyncio.create_task(node.stop()))

    async def _wait_for_entry(self, seconds: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._entry_changed.wait()
        if seconds is None:
            self._entry_changed.clear()

    async def _start_node(self, entry: RayEntry) -> None:
        self._node = RayNode(entry.token, entry.generation - 1)
        identity, address = self._identity.id, self._address
        await self._node.start(lambda ports, folder: peer_arguments(entry.address, identity, address, ports, folder))
        ports = self._node.ports.wildcard(head=False)
        self._tell_ray(entry, "", ports)
        await self._compile()
        self._say(
            f"Ready for stages. Ray listens on every address here, ports {port_words(ports)}, "
            "and answers only to the cluster's token."
        )

    async def _compile(self) -> None:
        """The processor's kernels, so that the first stage, or the one that has to be quick, need not."""
        folder = kernel_cache()
        if self._compiled or not kernels_missing(folder) or (await asyncio.to_thread(self._read)).gpus:
            return
        self._compiled = True
        self._say("Compiling the processor's kernels, once.")
        environment = process_environment(1, {**os.environ, "NUMBA_CACHE_DIR": str(folder)})
        nowhere = asyncio.subprocess.DEVNULL
        compiler = await asyncio.create_subprocess_exec(
            *COMPILER, env=environment, stdin=nowhere, stdout=nowhere, stderr=nowhere
        )
        try:
            await compiler.wait()
        except asyncio.CancelledError:
            compiler.kill()
            await compiler.wait()
            raise

    async def _node_or_entry(self) -> None:
        """Until the node has ended, or belongs to a generation that has."""
        if self._node is None:
            return
        ended = asyncio.create_task(self._node.ended())
        changed = asyncio.create_task(self._entry_changed.wait())
        try:
            await asyncio.wait({ended, changed}, return_when=asyncio.FIRST_COMPLETED)
            if not changed.done():
                raise RayStartError(ended.result())
        finally:
            ended.cancel()
            changed.cancel()

    def _tell_ray(self, entry: RayEntry, trouble: str, ports: tuple[int, ...]) -> None:
        self._ray_told = RayNodeTold(entry.generation, trouble[:500], ports)
        self._tell(self._ray_told)

    def _tell(self, message: HubMessage) -> None:
        if self._writer is not None:
            with contextlib.suppress(OSError, RuntimeError):
                self._writer.write(encoded(message))

    def _hang_up(self) -> None:
        """At once: nothing that was said last is worth waiting for a hub that may be away."""
        if self._writer is not None:
            with contextlib.suppress(OSError, RuntimeError, ssl.SSLError):
                self._writer.transport.abort()
            self._writer = None
