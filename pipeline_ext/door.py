"""Door: where the workers of one engine come to: by a Unix socket on this machine, by TLS from others.

A worker comes with two lines, orders and pulse, each introduced by a Hello with the engine's secret. What they say is
the transport's.
"""

from __future__ import annotations

import os
import queue
import shutil
import ssl
import tempfile
from pathlib import Path

from backend.frames import MAX_FRAME_BYTES
from backend.library.locations import cache_home
from backend.workers.meeting import arrange_meeting
from pipeline_ext.hello import LineHello, read_line_hello
from pipeline_ext.listening import MOST_PATH_BYTES, Listening, bound_tcp, bound_unix
from pipeline_ext.stream import Stream

_SOCKET = "door-{}.sock"


class Door:
    """Open from its making until `close`. `arrivals` gets who has come, and `bell` is readable then."""

    def __init__(
        self, secret: bytes, address: str = "", context: ssl.SSLContext | None = None, folder: Path | None = None
    ) -> None:
        """address: of the interface on which peers come, if any may; `context` is for TLS there.

        folder: private, for the Unix socket; None arranges one. Raises OSError where nothing can be listened on.
        """
        self._secret = secret
        self._own = folder is None
        self._folder = _private_folder() if folder is None else folder
        self.arrivals: queue.SimpleQueue[tuple[LineHello, Stream]] = queue.SimpleQueue()
        self.bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._listening = Listening(self._welcome, "door")
        self.unix = self._listening.listen(bound_unix(self._folder / _SOCKET.format(os.getpid())), None)
        self.tcp = self._listening.listen(bound_tcp(address), context) if address else ""

    @property
    def strangers(self) -> int:
        """How many were turned away."""
        return self._listening.strangers

    def place(self, peer: str) -> str:
        """What to tell workers of this machine (empty: the head). Where no address is listened on, all are here."""
        return self.tcp if peer and self.tcp else self.unix

    def ring(self) -> None:
        """Makes the bell readable."""
        os.eventfd_write(self.bell, 1)

    def close(self) -> None:
        """Nobody comes in any more. Lines that are open stay so."""
        self._listening.close()
        if self._own:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _welcome(self, body: bytes | bytearray, stream: Stream) -> None:
        hello = read_line_hello(body, self._secret)
        stream.limit = MAX_FRAME_BYTES
        self.arrivals.put((hello, stream))
        self.ring()


def _private_folder() -> Path:
    """A folder of this engine's own, gone with it, whose path is short enough for sockets."""
    try:
        meeting = arrange_meeting(cache_home() / "doors")
        folder = Path(tempfile.mkdtemp(prefix="e", dir=meeting.folder))
        if len(os.fsencode(folder)) + len(_SOCKET) + 10 <= MOST_PATH_BYTES:
            return folder
        folder.rmdir()
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="shardwise-"))
