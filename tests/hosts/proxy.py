"""Proxy: a process between a client and a server that passes bytes on, later, slower, or not at all; TLS goes through.

python -m tests.hosts.proxy HOST:PORT HOST:PORT     listens at the first, calls the second for each connection

Lines on its input: "shape DELAY BANDWIDTH" (seconds each way, bytes a second or 0), "freeze" (nothing passes, and
nothing is closed), "thaw", "cut" (resets every connection, and takes no new ones until "thaw").
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
from dataclasses import dataclass, field

PIECE_BYTES = 65536


@dataclass
class Shape:
    """How bytes pass at this moment."""

    delay: float = 0.0
    bandwidth: float | None = None
    open: asyncio.Event = field(default_factory=asyncio.Event)
    refuses: bool = False


class Proxy:
    """Used in one event loop."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._writers = set[asyncio.StreamWriter]()
        self.shape = Shape()
        self.shape.open.set()

    @property
    def connections(self) -> int:
        return len(self._writers) // 2

    async def serve(self, address: tuple[str, int]) -> asyncio.Server:
        return await asyncio.start_server(self._connected, *address)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.shape.refuses:
            _reset(writer)
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            _reset(writer)
            return
        ends = {writer, far_writer}
        self._writers |= ends
        for end in ends:
            end.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await asyncio.gather(self._pass_on(reader, far_writer), self._pass_on(far_reader, writer))
        finally:
            self._writers -= ends
            for end in ends:
                end.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction: taken at once, given when it is due."""
        held: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        giving = asyncio.create_task(self._give(held, writer))
        now, free = asyncio.get_running_loop().time, 0.0
        try:
            while True:
                piece = await reader.read(PIECE_BYTES)
                shape = self.shape
                free = max(free, now()) + (len(piece) / shape.bandwidth if shape.bandwidth else 0.0)
                held.put_nowait((free + shape.delay, piece))
                if not piece:
                    break
        except OSError:
            giving.cancel()
            _reset(writer)
        # A delay after the last piece, or a frozen proxy, holds the end back, too.
        with contextlib.suppress(asyncio.CancelledError, OSError):
            await giving

    async def _give(self, held: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        now = asyncio.get_running_loop().time
        while True:
            due, piece = await held.get()
            if (wait := due - now()) > 0:
                await asyncio.sleep(wait)
            await self.shape.open.wait()
            if not piece:
                if writer.can_write_eof():
                    writer.write_eof()
                return
            writer.write(piece)
            await writer.drain()

    def obey(self, line: str) -> None:
        """One line of the input."""
        match line.split():
            case ["shape", delay, bandwidth]:
                self.shape.delay, self.shape.bandwidth = float(delay), float(bandwidth) or None
            case ["freeze"]:
                self.shape.open.clear()
            case ["thaw"]:
                self.shape.refuses = False
                self.shape.open.set()
            case ["cut"]:
                self.shape.refuses = True
                for writer in list(self._writers):
                    _reset(writer)
            case _:
                raise ValueError(f"not an order: {line!r}")


def _reset(writer: asyncio.StreamWriter) -> None:
    end = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def main(here: str, there: str) -> None:
    proxy = Proxy(_address(there))
    server = await proxy.serve(_address(here))
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    print(f"listening {server.sockets[0].getsockname()[1]}", flush=True)
    while line := await orders.readline():
        proxy.obey(line.decode())
        print("ok", flush=True)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
