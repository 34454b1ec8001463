"""dial: connects to a listener of ours and says Hello; by a Unix socket on this machine, with TLS to another."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING

from backend.frames import MAX_FRAME_BYTES
from pipeline_ext.hello import HELLO_SECONDS, LineHello, LinkHello, encoder
from pipeline_ext.stream import Stream, keep_alive

if TYPE_CHECKING:
    from pathlib import Path


def split_place(place: str) -> tuple[str, int] | None:
    """Host and port of HOST:PORT; None for the path of a Unix socket. Raises ValueError for anything else."""
    if place.startswith("/"):
        return None
    host, _, port = place.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{place!r} is no place")
    return host.strip("[]"), int(port)


def dial(place: str, context: ssl.SSLContext | None, seconds: float = HELLO_SECONDS) -> Stream:
    """A stream to there, which has to be one of this cluster's machines.

    Raises OSError where nobody answers in time or it is a stranger, ValueError for what is no place.
    """
    found = split_place(place)
    if found is None:
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            peer.settimeout(seconds)
            peer.connect(place)
        except BaseException:
            peer.close()
            raise
        return Stream(peer)
    if context is None:
        raise ConnectionError(f"{place} is on another machine, and this one has no identity")
    peer = socket.create_connection(found, seconds)
    stream: Stream | None = None
    try:
        keep_alive(peer)
        peer.setblocking(False)
        wrapped = context.wrap_socket(peer, server_hostname=None, do_handshake_on_connect=False)
        stream = Stream(wrapped, MAX_FRAME_BYTES)
        stream.handshake(seconds)
    except BaseException:
        (stream or peer).close()
        raise
    return stream


def say(stream: Stream, hello: LineHello | LinkHello) -> None:
    """Introduces us."""
    stream.send(encoder.encode(hello))


def line_context(identity: Path | None) -> ssl.SSLContext | None:
    """For dialling other machines of the cluster; None without an identity.

    Any machine of the cluster may be at the other end: which one is only known by its address, and the secret inside is
    what tells an engine's processes from others.
    """
    context = None
    if identity is not None:
        from pipeline_ext.identity import client_context, read_identity

        found = read_identity(identity)
        if found is not None:
            context = client_context(found)
            context.check_hostname = False
    return context
