"""The actor on each peer: takes a SpawnOrder's bytes from the hub and has the StageLauncher obey it. In Ray's worker.

Only constants and byte strings pass through Ray. Whoever reads an order here checks it by its schema first.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import platformdirs

from pipeline_ext.cluster import SpawnOrder
from pipeline_ext.identity import peer_folder
from pipeline_ext.ray_settings import without_ray
from pipeline_ext.stage_launcher import LaunchError, StageLauncher


def stage_folder() -> Path:
    """Where the processes of stages are noted, and log."""
    return platformdirs.user_log_path("shardwise") / "stages"


class Spawner:
    """Its methods return empty bytes, or in words why not."""

    def __init__(self, address: str) -> None:
        """address: of this machine's interface, as its Ray node has it."""
        self._launcher = StageLauncher(stage_folder(), address, str(peer_folder()), without_ray(os.environ))
        self._launcher.keep_warm()

    def spawn(self, order: bytes) -> bytes:
        try:
            self._launcher.spawn(msgspec.msgpack.decode(order, type=SpawnOrder))
        except (LaunchError, msgspec.MsgspecError) as error:
            return (str(error) or "refused").encode()
        return b""

    def kill(self, workers: bytes) -> bytes:
        try:
            self._launcher.kill(msgspec.msgpack.decode(workers, type=tuple[str, ...]))
        except msgspec.MsgspecError as error:
            return (str(error) or "refused").encode()
        return b""

    def keep_warm(self) -> bytes:
        """Called after a spawn has been answered, because it takes its time."""
        try:
            self._launcher.keep_warm()
        except LaunchError as error:
            return str(error).encode()
        return b""
