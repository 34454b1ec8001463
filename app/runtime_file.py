"""The runtime file by which a running server is found: `server-PORT.json` with pid, url and model.

`app.background` reads these files; only the server writes them. Where they lie is said here.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs
import psutil
import structlog

log = structlog.get_logger("shardwise.server")


def runtime_folder() -> Path:
    """Where servers describe themselves; may not exist yet."""
    with warnings.catch_warnings():
        # Over SSH there may be no XDG_RUNTIME_DIR; the fallback is what everybody here uses then.
        warnings.simplefilter("ignore")
        return platformdirs.user_runtime_path("shardwise")


@contextmanager
def announced(port: int, url: str, model: str) -> Iterator[None]:
    """The file exists, for its owner only, while the context lasts; files of servers that died are removed.

    Where it cannot be written, the server is served all the same, and only not found by itself.
    """
    path = runtime_folder() / f"server-{port}.json"
    try:
        _write(path, {"pid": os.getpid(), "url": url, "model": model})
    except OSError as error:
        log.warning("no runtime file: other programs will not find this server", path=str(path), why=error.strerror)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _write(path: Path, record: dict[str, object]) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _remove_stale(path.parent)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    with open(unfinished, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        json.dump(record, file)
    # Renamed into place, so that a reader never sees half a file.
    unfinished.replace(path)


def _remove_stale(folder: Path) -> None:
    for path in folder.glob("server-*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if not psutil.pid_exists(int(json.loads(path.read_text())["pid"])):
                path.unlink(missing_ok=True)
