"""TensorLine: a line to a tensor server, over which ranges are asked for ahead, and each is checked by its hash."""

from __future__ import annotations

import hashlib
import socket
import ssl
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress

import msgspec

from pipeline_ext.identity import Identity, client_context, server_name
from pipeline_ext.tensor_journal import JournalLine
from pipeline_ext.tensor_messages import (
    SILENCE_SECONDS,
    Ask,
    Denied,
    Open,
    Opened,
    Piece,
    exactly,
    from_server_decoder,
    receive,
    send,
)

# Asked for before the first has come: a link's delay then costs nothing.
_AHEAD = 4
CONNECT_SECONDS = 10.0


class DeniedError(Exception):
    """The server refuses: asking again is of no use."""


class WrongPieceError(Exception):
    """The server sent other bytes than it said, or than were asked for; the line is of no use any more."""

    def __init__(self, ask: Ask, text: str) -> None:
        super().__init__(text)
        self.ask = ask


class TensorLine:
    """Raises OSError wherever the line breaks or is silent for long, DeniedError where the server refuses.

    Args:
        address: HOST:PORT.
        machine: who has to be there; empty for the head.
        identity: of this machine; None leaves TLS out, for tests of what lies within.
    """

    def __init__(self, address: str, machine: str, identity: Identity | None, secret: bytes) -> None:
        host, _, port = address.rpartition(":")
        self._line = socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS)
        try:
            self._line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if identity is not None:
                self._line = _secured(self._line, identity, machine)
            self._line.settimeout(SILENCE_SECONDS)
            send(self._line, Open(secret))
            if not isinstance(self._told(), Opened):
                raise ConnectionError("the server does not greet")
        except BaseException:
            self._line.close()
            raise

    def fetch(self, asks: Iterable[Ask]) -> Iterator[tuple[JournalLine, bytes | bytearray]]:
        """The ranges asked for, in order, each checked. Raises WrongPieceError for one that is wrong."""
        due: deque[Ask] = deque()
        for ask in asks:
            send(self._line, ask)
            due.append(ask)
            if len(due) == _AHEAD:
                yield self._piece(due.popleft())
        while due:
            yield self._piece(due.popleft())

    def close(self) -> None:
        with suppress(OSError):
            self._line.close()

    def _piece(self, ask: Ask) -> tuple[JournalLine, bytes | bytearray]:
        told = self._told()
        if not isinstance(told, Piece) or told.length != ask.length:
            raise WrongPieceError(ask, "the server sent another length than was asked for")
        data = exactly(self._line, ask.length)
        if hashlib.sha256(data).digest() != told.sha256:
            raise WrongPieceError(ask, "the bytes do not have the hash that came with them")
        return JournalLine(ask.file, ask.start, ask.length, told.sha256), data

    def _told(self) -> Opened | Piece:
        try:
            message = from_server_decoder.decode(receive(self._line))
        except (ValueError, msgspec.MsgspecError) as error:
            raise ConnectionError(f"the server breaks the protocol: {error}") from None
        if isinstance(message, Denied):
            raise DeniedError(message.text[:200])
        return message


def _secured(raw: socket.socket, identity: Identity, machine: str) -> ssl.SSLSocket:
    return client_context(identity).wrap_socket(raw, server_hostname=server_name(machine))
