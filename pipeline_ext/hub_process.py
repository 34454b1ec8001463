"""The hub's process: `python -m pipeline_ext.hub_process ADDRESS PORT`: binds, locks, runs the Hub until a signal.

It prints "ready" when it can be asked, or in up to three lines why it cannot be; `hub_start` reads that.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
from pathlib import Path

from backend.errors import ShardwiseError
from pipeline_ext.hub import Hub
from pipeline_ext.hub_control import socket_path
from pipeline_ext.hub_start import READY, HubStartError
from pipeline_ext.identity import head_identity
from pipeline_ext.lock_file import lock_file
from pipeline_ext.own_machine import measured_machine


def locked(path: Path) -> int:
    """A descriptor that holds this user's lock. Raises HubStartError where another hub holds it."""
    descriptor = lock_file(path)
    if descriptor is None:
        raise HubStartError("A hub is running already", f"{path} is locked.", "shardwise peers stop ends it.")
    return descriptor


def bound(address: str, port: int) -> socket.socket:
    """Bound to this address only. Raises HubStartError."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
    except OSError as error:
        listener.close()
        hint = "Choose another: shardwise peers invite --port PORT" if error.errno == errno.EADDRINUSE else ""
        raise HubStartError(f"Peers cannot come to {address}:{port}", f"{error.strerror}.", hint) from None
    return listener


async def run(address: str, port: int) -> None:
    control = socket_path()
    lock = locked(control.with_name("hub.lock"))
    hub = Hub(bound(address, port), head_identity(), control, measure=measured_machine)
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, hub.stop)
    running = asyncio.create_task(hub.run())
    opened = asyncio.create_task(hub.opened.wait())
    await asyncio.wait({running, opened}, return_when=asyncio.FIRST_COMPLETED)
    opened.cancel()
    if not running.done():
        sys.stdout.write(READY + "\n")
        sys.stdout.flush()
        # Who started us hears nothing more; what is logged goes to the log.
        os.dup2(2, 1)
    await running
    os.close(lock)


def main() -> None:
    address, port = sys.argv[1], int(sys.argv[2])
    try:
        asyncio.run(run(address, port))
    except ShardwiseError as error:
        sys.stdout.write(f"{error}\n")
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
