"""Stream: frames over one connected socket, plain or TLS, that nobody has to wait for; what they mean, others know.

A TLS connection must not be read and written by two threads at once, and a blocking read would keep the writer out. So
the socket never blocks: whoever wants to wait does so outside of it, and every touch of it is short and under one lock.

    send     the caller's thread what the socket takes, a thread of the stream's own the rest
    receive  what is there, without waiting; `next` waits
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time
from collections import deque

from backend.frames import MAX_FRAME_BYTES

# What may wait for a reader. More than this is never in flight between processes that obey each other.
MOST_UNSENT_BYTES = 256 * 1024 * 1024
# So much of a frame makes it worth receiving into memory of its own, and is received before others get their turn.
_CHUNK_BYTES = 64 * 1024
_TURN_BYTES = 4 * 1024 * 1024
_RECORD_BYTES = 16 * 1024  # of TLS
_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

Part = bytes | bytearray | memoryview


def keep_alive(peer: socket.socket) -> None:
    """For TCP: no waiting to fill packets, and a machine that is cut off is noticed, also where nothing is said."""
    if peer.family not in (socket.AF_INET, socket.AF_INET6):
        return
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 2), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", 4), ("TCP_USER_TIMEOUT", 8000)):
        if hasattr(socket, name):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class Stream:
    """One thread reads; any may send and close."""

    def __init__(self, peer: socket.socket, limit: int = MAX_FRAME_BYTES) -> None:
        """limit: bytes of the longest frame that is taken; may be raised once it is known who is there."""
        peer.setblocking(False)
        self._peer = peer
        self.limit = limit
        self._io = threading.Lock()
        self._chunk = bytearray(_CHUNK_BYTES)
        self._buffer = bytearray()
        self._body: bytearray | None = None
        self._filled = 0
        self._frames: deque[bytes | bytearray] = deque()
        self._unsent = bytearray()
        self._changed = threading.Condition()
        self._writer: threading.Thread | None = None
        self._closed = False

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def peer(self) -> socket.socket:
        """For what it is connected to; not to be read or written."""
        return self._peer

    def fileno(self) -> int:
        """Readable when something comes, or the end; -1 when closed. What TLS holds already is `pending`'s."""
        return self._peer.fileno()

    @property
    def pending(self) -> bool:
        """Whether `receive` or `take` would bring something although the socket is not readable."""
        with self._io:
            held = isinstance(self._peer, ssl.SSLSocket) and not self._closed and self._peer.pending() > 0
        return held or bool(self._frames)

    def handshake(self, seconds: float) -> None:
        """Completes TLS, where it is spoken. Raises OSError (TimeoutError, ssl.SSLError included)."""
        if not isinstance(self._peer, ssl.SSLSocket):
            return
        deadline = time.monotonic() + seconds
        while True:
            try:
                with self._io:
                    self._peer.do_handshake()
                return
            except ssl.SSLWantReadError:
                self._wait(select.POLLIN, deadline)
            except ssl.SSLWantWriteError:
                self._wait(select.POLLOUT, deadline)

    def send(self, *parts: Part) -> None:
        """One frame, of these parts; queued, never waits. Silent about a stream that is closed, which reading tells.

        What the parts view may change afterwards.
        """
        length = sum(_size(part) for part in parts)
        with self._changed:
            if self._closed:
                return
            pieces: list[Part] = [length.to_bytes(4, "big"), *parts]
            if length < _CHUNK_BYTES:
                pieces = [b"".join(pieces)]
            try:
                self._send(pieces)
            except OSError:
                return self._cut()
            if len(self._unsent) > MOST_UNSENT_BYTES:
                self._cut()

    def flush(self, seconds: float) -> None:
        """Waits until everything is sent, at most so long."""
        with self._changed:
            self._changed.wait_for(lambda: not self._unsent or self._closed, timeout=seconds)

    def receive(self) -> bool:
        """Takes in what has come, without waiting, for `take`; False when the other side has closed, or all broke.

        Raises ValueError for a frame longer than `limit`.
        """
        received = 0
        while received < _TURN_BYTES:
            try:
                with self._io:
                    count = self._receive_some()
            except _WOULD_BLOCK:
                return True
            except OSError:
                return False
            if count == 0:
                return False
            received += count
            self._sort(count)
        return True

    def take(self) -> bytes | bytearray | None:
        """The body of the next frame that has been received whole, if there is one. Does not touch the socket."""
        return self._frames.popleft() if self._frames else None

    def next(self, seconds: float | None = None) -> bytes | bytearray | None:
        """The body of the next frame; None when the other side has closed, also within a frame, or we have.

        Raises TimeoutError after so many seconds, ValueError as `receive`.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        while not self._frames:
            if not self.receive() and not self._frames:
                return None
            if self._frames:
                break
            if self._closed:
                return None
            self._wait(select.POLLIN, deadline)
        return self._frames.popleft()

    def close(self) -> None:
        """Ends both directions at once; whoever reads it learns it. What was not sent is lost."""
        with self._changed:
            self._cut()
        with self._io, contextlib.suppress(OSError):
            self._peer.close()

    def _cut(self) -> None:
        self._closed = True
        self._unsent.clear()
        with contextlib.suppress(OSError):
            # Not SSLSocket's own, which takes the encryption off a connection that another thread may be reading.
            socket.socket.shutdown(self._peer, socket.SHUT_RDWR)
        self._changed.notify_all()

    def _wait(self, event: int, deadline: float | None) -> None:
        number = self._peer.fileno()
        if number < 0:
            raise ConnectionError("closed")
        poll = select.poll()
        poll.register(number, event)
        patience = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        if not poll.poll(patience) and deadline is not None:
            raise TimeoutError("nothing came in time")

    def _receive_some(self) -> int:
        if self._body is not None:
            return self._peer.recv_into(memoryview(self._body)[self._filled :])
        return self._peer.recv_into(self._chunk)

    def _sort(self, count: int) -> None:
        """Makes frames of what `_receive_some` has brought."""
        if self._body is not None:
            self._filled += count
            if self._filled == len(self._body):
                self._frames.append(self._body)
                self._body = None
            return
        buffer = self._buffer
        buffer += memoryview(self._chunk)[:count]
        first = 0
        while len(buffer) - first >= 4:
            length = int.from_bytes(buffer[first : first + 4], "big")
            if length > self.limit:
                raise ValueError(f"a frame of {length} bytes; at most {self.limit} are allowed")
            end = first + 4 + length
            if len(buffer) < end:
                if length > _CHUNK_BYTES:
                    self._body, self._filled = bytearray(length), len(buffer) - first - 4
                    self._body[: self._filled] = memoryview(buffer)[first + 4 :]
                    first = len(buffer)
                break
            self._frames.append(bytes(memoryview(buffer)[first + 4 : end]))
            first = end
        del buffer[:first]

    def _send(self, pieces: list[Part]) -> None:
        """Under `_changed`."""
        if self._unsent:
            for piece in pieces:
                self._unsent += piece
            return
        for piece in pieces:
            view = memoryview(piece).cast("B")
            if not self._unsent:
                view = view[self._send_now(view) :]
            if view:
                self._unsent += view
        if self._unsent:
            self._start_writer()
            self._changed.notify_all()

    def _send_now(self, view: memoryview) -> int:
        """Bytes that the socket has taken."""
        sent = 0
        while sent < len(view):
            try:
                with self._io:
                    sent += self._peer.send(view[sent : sent + self._piece])
            except _WOULD_BLOCK:
                break
        return sent

    @property
    def _piece(self) -> int:
        # TLS wants a write that it could not finish repeated with no fewer bytes: whole records keep to that.
        return _RECORD_BYTES if isinstance(self._peer, ssl.SSLSocket) else 1 << 20

    def _start_writer(self) -> None:
        if self._writer is None:
            self._writer = threading.Thread(target=self._write, name="stream", daemon=True)
            self._writer.start()

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._unsent or self._closed)
                if self._closed:
                    return
                piece = bytes(memoryview(self._unsent)[: self._piece])
            try:
                with self._io:
                    sent = self._peer.send(piece)
            except _WOULD_BLOCK:
                sent = 0
            except OSError:
                with self._changed:
                    return self._cut()
            with self._changed:
                # Only this thread removes while there is something, so the piece is still in front.
                if not self._closed:
                    del self._unsent[:sent]
                if not self._unsent:
                    self._changed.notify_all()
            if not sent:
                with contextlib.suppress(OSError, TimeoutError):
                    self._wait(select.POLLOUT, time.monotonic() + 1.0)


def _size(part: Part) -> int:
    return part.nbytes if isinstance(part, memoryview) else len(part)
