"""Frames on a stream socket between our processes: a 4-byte big-endian length, then a body that others encode."""

from __future__ import annotations

import socket

MAX_FRAME_BYTES = 256 * 1024 * 1024
_CHUNK_BYTES = 64 * 1024


def framed(body: bytes) -> bytes:
    """The body with its length in front, ready for the socket."""
    return len(body).to_bytes(4, "big") + body


def receive_frame(peer: socket.socket) -> bytes | None:
    """The body of the next frame, or None when the peer has closed. Blocks, and reads nothing beyond the frame.

    Raises:
        ValueError: for a frame longer than any message.
    """
    head = _receive_exactly(peer, 4)
    if head is None:
        return None
    return _receive_exactly(peer, _length(head))


def _length(head: bytes | bytearray) -> int:
    length = int.from_bytes(head, "big")
    if length > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {length} bytes; at most {MAX_FRAME_BYTES} are allowed")
    return length


def _receive_exactly(peer: socket.socket, count: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < count:
        part = peer.recv(min(count - len(parts), 1024 * 1024))
        if not part:
            return None
        parts += part
    return bytes(parts)


class FrameReader:
    """Reads frames of one socket, which nobody else reads: a short frame costs one call of the system."""

    def __init__(self, peer: socket.socket) -> None:
        self._peer = peer
        self._buffer = bytearray()

    def next(self) -> bytes | None:
        """The body of the next frame; blocks. None when the peer has closed, also within a frame.

        Raises ValueError for a frame longer than any message, and ConnectionError where the socket breaks.
        """
        while (body := self.take()) is None:
            if not self.receive():
                return None
        return body

    def take(self) -> bytes | None:
        """The body of a frame that has been received whole, if there is one. Does not touch the socket."""
        if len(self._buffer) < 4:
            return None
        end = 4 + _length(self._buffer[:4])
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[4:end])
        del self._buffer[:end]
        return body

    def receive(self) -> bool:
        """Takes in what the socket has, waiting for some; False when the peer has closed."""
        part = self._peer.recv(_CHUNK_BYTES)
        self._buffer += part
        return bool(part)
