"""PeerLine: the hub's end of the TLS line to one peer: beats, what the peer tells, and what the line is measured at."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from statistics import median

from pipeline_ext.hub_messages import (
    PEER_FRAME,
    Beat,
    FromPeer,
    Hello,
    HubMessage,
    Leaving,
    MachineNow,
    Ping,
    Pong,
    RayEntry,
    RayNode,
    Welcome,
    decoded,
    encoded,
    from_peer,
    read_frame,
)
from pipeline_ext.peer import PeerLink
from pipeline_ext.peer_table import PeerTable

BEAT_SECONDS = 1.0
# A line on which nothing comes for so long is closed; the machine is lost by then.
SILENCE_SECONDS = 10.0
# Measured at once, again when what starts at first has settled, and then now and then.
MEASURE_SECONDS = (15.0, 300.0)
_PINGS = 7
_LOADS = (64 * 1024, 256 * 1024, 1024 * 1024, 3 * 1024 * 1024)
# A load that takes longer than this has told enough.
_LONG_ENOUGH = 0.05
_ANSWER_SECONDS = 20.0


class PeerLine:
    """One connection of one peer, which the table knows.

    Args:
        changed: an event that is set when somebody should look at the table.
    """

    def __init__(
        self,
        peer: str,
        table: PeerTable,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        changed: asyncio.Event,
    ) -> None:
        self.peer, self._table, self._changed = peer, table, changed
        self._reader, self._writer = reader, writer
        self._pongs: dict[int, asyncio.Future[None]] = {}
        self._numbers = 0
        self._told_generation = 0
        self._number = 0

    async def run(self, hello: Hello, address: str) -> None:
        """Until the line ends, or nothing came on it for long. Raises BadFrameError, OSError, TimeoutError."""
        self._number = self._table.came(self.peer, address, hello.version, hello.machine)
        self._changed.set()
        self.tell(Welcome(self._table.name(self.peer)))
        beside = [asyncio.create_task(self._beat()), asyncio.create_task(self._measure())]
        try:
            while True:
                async with asyncio.timeout(SILENCE_SECONDS):
                    body = await read_frame(self._reader, PEER_FRAME)
                if body is None:
                    return
                message = decoded(from_peer, body)
                # Whatever comes is a sign of life.
                memory = message.memory if isinstance(message, Beat) else 0
                if not self._table.heard(self.peer, self._number, memory):
                    return
                self._hear(message)
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            self._table.gone(self.peer, self._number)
            self.close()

    def tell(self, message: HubMessage) -> None:
        """Queues it; never waits."""
        with contextlib.suppress(OSError, RuntimeError):
            self._writer.write(encoded(message))

    def tell_ray(self, entry: RayEntry | None) -> None:
        """Once for each generation."""
        if entry is not None and entry.generation != self._told_generation:
            self._told_generation = entry.generation
            self.tell(entry)

    def close(self) -> None:
        """Ends the line, once what was told is sent."""
        with contextlib.suppress(OSError, RuntimeError):
            self._writer.close()

    def _hear(self, message: FromPeer) -> None:
        match message:
            case Pong(number):
                pong = self._pongs.get(number)
                if pong is not None and not pong.done():
                    pong.set_result(None)
            case MachineNow(machine):
                self._table.measured(self.peer, machine=machine)
            case RayNode():
                self._table.ray(self.peer, message.trouble, message.ports)
                self._changed.set()
            case Leaving():
                self._table.leaving(self.peer)
                self._changed.set()
            case Beat() | Hello():
                pass

    async def _beat(self) -> None:
        while True:
            self.tell(Beat())
            await asyncio.sleep(BEAT_SECONDS)

    async def _measure(self) -> None:
        pauses = itertools.chain(MEASURE_SECONDS, itertools.repeat(MEASURE_SECONDS[-1]))
        for pause in pauses:
            with contextlib.suppress(TimeoutError, OSError):
                self._table.measured(self.peer, link=await self._link())
                self._changed.set()
            await asyncio.sleep(pause)

    async def _link(self) -> PeerLink:
        """Half a round trip, and what a load takes longer than nothing does; loads grow while they are too quick."""
        trip = median([await self._ping(b"") for _ in range(_PINGS)])
        bandwidth = 0.0
        for size in _LOADS:
            seconds = min([await self._ping(bytes(size)) for _ in range(2)])
            bandwidth = size / max(seconds - trip, 1e-6)
            if seconds > _LONG_ENOUGH:
                break
        return PeerLink(trip / 2, bandwidth)

    async def _ping(self, load: bytes) -> float:
        """Seconds until the answer."""
        loop = asyncio.get_running_loop()
        self._numbers += 1
        number = self._numbers
        pong = self._pongs[number] = loop.create_future()
        begin = loop.time()
        try:
            self.tell(Ping(number, load))
            async with asyncio.timeout(_ANSWER_SECONDS):
                await pong
        finally:
            del self._pongs[number]
        return loop.time() - begin
