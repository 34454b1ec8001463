"""Where the output of a process that we start goes: a log of its own, which does not grow without end."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import IO

MAX_LOG_BYTES = 4 * 1024 * 1024


def open_log(log: Path | None) -> contextlib.AbstractContextManager[IO[bytes] | None]:
    """The log, opened to append; one past `MAX_LOG_BYTES` is set aside first, so there are two at most.

    None stands for no log: the process writes where ours does.
    """
    if log is None:
        return contextlib.nullcontext()
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
        log.replace(log.with_suffix(".old"))
    return open(log, "ab", opener=lambda path, flags: os.open(path, flags, 0o600))


def rank_log(log: Path | None, rank: int) -> Path | None:
    """The log of one rank, beside that of its engine."""
    return None if log is None else log.with_name(f"{log.stem}.rank-{rank}{log.suffix}")
