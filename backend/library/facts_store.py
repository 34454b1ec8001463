"""What was found out about models, kept in the user's cache: small JSON files, each of which may vanish at any time."""

from __future__ import annotations

import os
import time
from typing import TypeVar

import msgspec

from backend.library.locations import cache_home

T = TypeVar("T")


def read_kept(key: str, kind: type[T], seconds: float | None = None) -> T | None:
    """What was kept under the key; None where nothing is, it is older than `seconds`, or it cannot be read."""
    path = cache_home() / "facts" / f"{key}.json"
    try:
        if seconds is not None and time.time() - path.stat().st_mtime > seconds:
            return None
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError):
        return None


def write_kept(key: str, value: object) -> None:
    """Keeps it, whole or not at all. A disk that takes nothing only means that it is found out again."""
    path = cache_home() / "facts" / f"{key}.json"
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_bytes(msgspec.json.encode(value))
        os.replace(fresh, path)
    except OSError:
        return
