"""Where the ranks of one engine meet: a private folder that outlives engines of one server, and a word for each start.

It outlives them because a means of communication that hung one start is not tried by the next.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from msgspec import Struct


class Meeting(Struct, frozen=True):
    """As `open_group` wants it: `generation` is never used twice in the folder."""

    folder: str
    generation: str


def arrange_meeting(root: Path) -> Meeting:
    """A folder below `root` for our parent's engines. Those of parents that are no more are removed.

    Raises OSError where it cannot be made.
    """
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    for old in root.iterdir():
        if old.name.isdigit() and not Path(f"/proc/{old.name}").exists():
            shutil.rmtree(old, ignore_errors=True)
    folder = root / str(os.getppid())
    folder.mkdir(mode=0o700, exist_ok=True)
    return Meeting(str(folder), f"{os.getpid()}-{time.time_ns()}")
