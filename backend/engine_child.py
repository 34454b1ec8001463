"""EngineChild: one engine process as its parent holds it: spawned, spoken to, ended and reaped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from msgspec.structs import replace

from backend.engine_environment import engine_environment
from backend.engine_settings import EngineSettings
from backend.frames import MAX_FRAME_BYTES, framed
from backend.messages import FromEngine, Stop, ToEngine, encoder, frame, from_engine_decoder
from backend.process_log import open_log


class EngineChild:
    """Made by `spawn`. All methods belong to the event loop that spawned it."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer

    @classmethod
    async def spawn(cls, command: Sequence[str], settings: EngineSettings, log: Path | None) -> EngineChild:
        """Starts `command` with the number of its socket appended, and sends it the settings.

        A fresh program, never a fork of ours: threads and locks of the server do not come along. It becomes
        the leader of its own session, so that a terminal's Ctrl+C does not reach it and its helpers can be
        ended with it. Its output goes to `log`, or where ours goes.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs, open_log(log) as output:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    str(theirs.fileno()),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                    env=engine_environment(settings, os.environ),
                )
            ours.setblocking(False)
            reader, writer = await asyncio.open_unix_connection(sock=ours, limit=1024 * 1024)
        except BaseException:
            ours.close()
            raise
        child = cls(process, reader, writer)
        writer.write(framed(encoder.encode(replace(settings, log_file=str(log or "")))))
        return child

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: ToEngine) -> None:
        """Queues a message; one to a process that has died is dropped, its end shows in `messages`."""
        if not self._writer.is_closing():
            self._writer.write(frame(message))

    async def messages(self) -> AsyncIterator[FromEngine]:
        """What the engine tells, until its end of the socket is closed.

        Raises:
            ValueError, msgspec.DecodeError: for bytes that are no message.
        """
        while True:
            try:
                length = int.from_bytes(await self._reader.readexactly(4), "big")
                if length > MAX_FRAME_BYTES:
                    raise ValueError(f"the engine announced a frame of {length} bytes")
                body = await self._reader.readexactly(length)
            except (asyncio.IncompleteReadError, ConnectionError):
                return
            yield from_engine_decoder.decode(body)

    def kill(self) -> None:
        """SIGKILL to the process and its helpers; also right for one that is frozen or has gone already."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    async def end(self, patience: float = 1.0) -> int:
        """Ends the process, politely at first, and reaps it: its exit status, negative for a signal.

        Stop, then SIGTERM, then SIGKILL, `patience` seconds apart. Nothing of it is left when this returns.
        """
        try:
            self.send(Stop())
            for last_word in (self._process.terminate, self.kill):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(patience):
                        return await self._process.wait()
                with contextlib.suppress(ProcessLookupError):
                    last_word()
            return await self._process.wait()
        finally:
            # Also where our task was cancelled while it waited, and for helpers that outlived their leader.
            self.kill()
            self._writer.close()
