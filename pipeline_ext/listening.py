"""Listening: a socket on which strangers are told nothing, and whoever shows the secret is handed on.

Unix sockets in a private folder are for processes of this machine; on an address, TLS with certificates of the cluster
is required of both sides first. Each visitor has a thread for so long as it takes to say who it is.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pipeline_ext.hello import HELLO_BYTES, HELLO_SECONDS, StrangerError
from pipeline_ext.stream import Stream, keep_alive

# Visitors that have not said yet who they are; more are turned away, and come again if they belong here.
MOST_VISITORS = 64
_BACKLOG = 64
# A path of a Unix socket has to be shorter than 108 bytes on Linux, and than 104 elsewhere.
MOST_PATH_BYTES = 100

log = logging.getLogger("shardwise.lines")

# Gets the first frame of a stream, in a thread of the visitor's. Raises StrangerError where it does not belong here.
OnVisitor = Callable[[bytes | bytearray, Stream], None]


def bound_unix(path: Path) -> socket.socket:
    """A listening Unix socket that only this user may connect to. Raises OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        os.chmod(path, 0o600)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def bound_tcp(address: str) -> socket.socket:
    """A listening TCP socket on a port of this address that is free. Raises OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.bind((address, 0))
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def place_of(listener: socket.socket) -> str:
    """Where it is reached: HOST:PORT, or the path of a Unix socket."""
    name = listener.getsockname()
    if isinstance(name, str):
        return name
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Listening:
    """Owns listening sockets until `close`. `strangers` counts who was turned away."""

    def __init__(self, on_visitor: OnVisitor, name: str) -> None:
        self._on_visitor = on_visitor
        self._name = name
        self._listeners: list[socket.socket] = []
        self._visitors = threading.Semaphore(MOST_VISITORS)
        self._guard = threading.Lock()
        self.strangers = 0

    def listen(self, listener: socket.socket, context: ssl.SSLContext | None) -> str:
        """Lets visitors in there from now on; the place. context: for TLS; only a Unix socket may go without."""
        if context is None and listener.family != socket.AF_UNIX:
            raise ValueError("a listener on an address needs TLS")
        self._listeners.append(listener)
        threading.Thread(target=self._accept, args=(listener, context), name=self._name, daemon=True).start()
        return place_of(listener)

    def close(self) -> None:
        """Nobody is let in any more."""
        for listener in self._listeners:
            place = listener.getsockname()
            with contextlib.suppress(OSError):
                # Ends the thread's accept, which closing alone would not.
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            if isinstance(place, str) and place:
                Path(place).unlink(missing_ok=True)
        self._listeners.clear()

    def _accept(self, listener: socket.socket, context: ssl.SSLContext | None) -> None:
        while listener.fileno() >= 0:
            try:
                peer, _ = listener.accept()
            except OSError:
                if listener not in self._listeners:
                    return
                time.sleep(0.1)  # out of descriptors, or a visitor that has gone again
                continue
            if not self._visitors.acquire(blocking=False):
                self._turn_away(peer, "too many visitors")
                continue
            threading.Thread(target=self._receive, args=(peer, context), name=self._name, daemon=True).start()

    def _receive(self, peer: socket.socket, context: ssl.SSLContext | None) -> None:
        stream: Stream | None = None
        try:
            stream = _stream(peer, context)
            stream.handshake(HELLO_SECONDS)
            body = stream.next(HELLO_SECONDS)
            if body is None:
                raise StrangerError("it left without a word")
            self._on_visitor(body, stream)
        except (OSError, ValueError) as error:
            self._turn_away(stream or peer, str(error))
        finally:
            self._visitors.release()

    def _turn_away(self, visitor: Stream | socket.socket, why: str) -> None:
        with self._guard:
            self.strangers += 1
        visitor.close()
        log.info("%s: turned a visitor away: %s", self._name, why)


def _stream(peer: socket.socket, context: ssl.SSLContext | None) -> Stream:
    keep_alive(peer)
    if context is not None:
        peer.setblocking(False)
        peer = context.wrap_socket(peer, server_side=True, do_handshake_on_connect=False)
    return Stream(peer, HELLO_BYTES)
