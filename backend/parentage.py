"""What a process that we start does about its parent: it dies with it, and takes over the sockets that it was given."""

from __future__ import annotations

import ctypes
import signal
import socket
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Asks Linux to kill this process with its parent (with the thread that started it), frozen or not; elsewhere the
    socket tells."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt(descriptor: int) -> socket.socket:
    """The parent's socket, not inherited by processes that we start: a copy would hide the parent's death."""
    peer = socket.socket(fileno=descriptor)
    peer.set_inheritable(False)
    return peer
