"""The installed version of shardwise, which has to be the same on all machines of a cluster."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def own_version() -> str:
    try:
        return version("shardwise")
    except PackageNotFoundError:
        return "0"
