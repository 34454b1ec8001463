"""Who lives in a process group."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from backend.process_group import living_members


def test_members_are_listed_until_they_are_dead_reaped_or_not() -> None:
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    assert living_members(sleeper.pid) == [sleeper.pid]
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert living_members(sleeper.pid) == []
    sleeper.wait()
    assert living_members(sleeper.pid) == []


def test_names_may_hold_anything(tmp_path: Path) -> None:
    for pid, name, state, group in ((5, "a) Z 1 (b", "S", 7), (6, "x", "Z", 7), (8, "y", "R", 9)):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} ({name}) {state} 1 {group} 7 0 -1")
    (tmp_path / "9").mkdir()
    (tmp_path / "self").mkdir()
    assert living_members(7, tmp_path) == [5]
