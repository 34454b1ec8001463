"""Prefill and decode apart: the two engines of one model in a server, and the folder in memory between them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from app.runtime_file import runtime_folder
from backend.disaggregated_engine import DisaggregatedEngine
from backend.engine_client import EngineClient
from backend.engine_settings import EngineSettings
from backend.hardware.machine import read_machine
from backend.planner.halves import halves

_MEMORY = Path("/dev/shm")
_PREFIX = "shardwise-pages-"


def disaggregated(settings: EngineSettings, engine: Callable[[EngineSettings, str], EngineClient]) -> EngineClient:
    """Two engines as one. `engine` makes one of settings and a word for its log.

    Raises SettingError where the machine cannot be divided between two.
    """
    folder = hand_over_folder()
    try:
        free = shutil.disk_usage(folder).free // 2
        both = halves(settings, read_machine(), str(folder), free)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return DisaggregatedEngine(
        engine(both.prefill, "prefill"),
        engine(both.decode, "decode"),
        close=lambda: shutil.rmtree(folder, ignore_errors=True),
    )


def hand_over_folder() -> Path:
    """A new folder of our own, in memory where the system has such; those of servers that are no more are removed."""
    root = _MEMORY if os.access(_MEMORY, os.W_OK) else runtime_folder()
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    for old in root.glob(f"{_PREFIX}*"):
        pid = old.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and old.stat().st_uid == os.geteuid():
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=root))
