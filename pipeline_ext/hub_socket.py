"""HubSocket: the hub's Unix socket, for processes of the same user: bounded frames in, an answer each. Asks the Hub."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import structlog

from backend.errors import ShardwiseError
from backend.frames import framed
from pipeline_ext.hub_control import (
    CONTROL_FRAME,
    Answer,
    News,
    Question,
    Refused,
    Subscribe,
    encoder,
    question_decoder,
)
from pipeline_ext.hub_messages import BadFrameError, read_frame

_QUESTION_SECONDS = 10.0
_NEWS_SECONDS = 10.0

log = structlog.get_logger("shardwise.hub")


class HubSocket:
    """Args:
    path: of the socket; its folder is this user's own.
    answer: asked one question at a time; raises ShardwiseError to refuse.
    news: what subscribers are told.
    subscribed: called with an engine's id and the peers that it uses, or None when it has gone.
    """

    def __init__(
        self,
        path: Path,
        answer: Callable[[Question], Awaitable[Answer]],
        news: Callable[[], News],
        subscribed: Callable[[str, tuple[str, ...] | None], None],
    ) -> None:
        self._path, self._answer, self._news, self._subscribed = path, answer, news, subscribed
        self._listeners: dict[asyncio.StreamWriter, str] = {}
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Nobody but the hub that holds the lock may do this: what lies there is removed."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._enter, self._path)
        finally:
            os.umask(before)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._listeners:
            writer.close()
        self._path.unlink(missing_ok=True)

    def publish(self) -> None:
        """Tells the news to all who want them; one that does not read is hung up on."""
        frame = framed(encoder.encode(self._news()))
        for writer in list(self._listeners):
            if writer.transport.get_write_buffer_size() > CONTROL_FRAME:
                writer.transport.abort()
            else:
                writer.write(frame)

    async def _enter(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if not _same_user(writer.get_extra_info("socket")):
                return
            async with asyncio.timeout(_QUESTION_SECONDS):
                body = await read_frame(reader, CONTROL_FRAME)
            if body is None:
                return
            question = question_decoder.decode(body)
            if isinstance(question, Subscribe):
                await self._serve_news(question, reader, writer)
            else:
                writer.write(framed(encoder.encode(await self._ask(question))))
                async with asyncio.timeout(_NEWS_SECONDS):
                    await writer.drain()
        except (BadFrameError, msgspec.MsgspecError, RecursionError, OSError, TimeoutError) as error:
            log.info("a question was not understood", why=str(error)[:200])
        finally:
            with contextlib.suppress(OSError, RuntimeError):
                writer.close()

    async def _ask(self, question: Question) -> Answer:
        try:
            return await self._answer(question)
        except ShardwiseError as error:
            return Refused(error.what, error.why, error.hint)

    async def _serve_news(self, asked: Subscribe, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._listeners[writer] = asked.engine
        self._subscribed(asked.engine, asked.peers)
        try:
            writer.write(framed(encoder.encode(self._news())))
            # It says nothing more; what ends is its line.
            await reader.read(1)
        finally:
            del self._listeners[writer]
            self._subscribed(asked.engine, None)


def _same_user(line: socket.socket) -> bool:
    """Whether who connected is this user, or root, who may do everything anyway."""
    credentials = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", credentials)
    return user in (os.geteuid(), 0)
