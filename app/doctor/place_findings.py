"""Findings about where things go: folders, disk space, the server's port, the model library."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path

from app.doctor.finding import Finding
from backend.library.catalogue import InstalledModel
from backend.planner.units import human_bytes

_LITTLE_SPACE = 2 << 30


def folder_finding(name: str, folder: Path, needs_space: bool = False) -> Finding:
    """Whether files can be written to a folder, and whether its disk has room.

    A folder that is missing is not made, since its owner chooses its permissions; the one it would lie in is asked.
    """
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        if existing == folder:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"shardwise")
        elif not os.access(existing, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, f"{existing} denies it")
        free = shutil.disk_usage(existing).free
    except OSError as error:
        return Finding(
            f"{name} folder",
            "failure",
            f"{folder} cannot be written: {error.strerror or error}.",
            "Make it yours (chown), or free space on its disk.",
        )
    what = f"{folder} can be written, {human_bytes(free)} are free."
    if needs_space and free < _LITTLE_SPACE:
        return Finding(f"{name} folder", "warning", what, "Free space there: models take gigabytes.")
    return Finding(f"{name} folder", "ok", what)


def port_finding(port: int) -> Finding:
    """Whether the server's default port is free on loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            return Finding(
                "port",
                "warning",
                f"Port {port} on 127.0.0.1 is not free ({error.strerror}); perhaps a server runs already.",
                f"Use it with `shardwise --connect http://127.0.0.1:{port}`, or choose another: --port {port + 1}",
            )
    return Finding("port", "ok", f"Port {port} on 127.0.0.1 is free.")


def library_finding(models: Sequence[InstalledModel]) -> Finding:
    """What is installed."""
    if not models:
        return Finding("library", "note", "No model is installed yet.", "Get the small one: shardwise pull starter")
    names = ", ".join(model.name for model in models[:5])
    more = f" and {len(models) - 5} more" if len(models) > 5 else ""
    return Finding("library", "ok", f"Installed: {names}{more}; {human_bytes(sum(m.bytes for m in models))}.")
