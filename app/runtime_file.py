"""The runtime file by which a running server is found: `server-PORT.json` with pid, url and model.

`app.background` reads these files; only the server writes them.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs
import psutil


@contextmanager
def announced(port: int, url: str, model: str) -> Iterator[Path]:
    """The file exists, for its owner only, while the context lasts; files of servers that died are removed."""
    folder = platformdirs.user_runtime_path("shardwise")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _remove_stale(folder)
    path = folder / f"server-{port}.json"
    unfinished = folder / f".server-{port}.{os.getpid()}"
    with open(unfinished, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        json.dump({"pid": os.getpid(), "url": url, "model": model}, file)
    # Renamed into place, so that a reader never sees half a file.
    unfinished.replace(path)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _remove_stale(folder: Path) -> None:
    for path in folder.glob("server-*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if not psutil.pid_exists(int(json.loads(path.read_text())["pid"])):
                path.unlink(missing_ok=True)
