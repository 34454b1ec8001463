"""Where ranks meet: private, new each time, and cleaned up after servers that are no more."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

from backend.workers.meeting import arrange_meeting


def test_starts_of_one_server_share_a_private_folder_and_no_word(tmp_path: Path) -> None:
    first, second = arrange_meeting(tmp_path / "ranks"), arrange_meeting(tmp_path / "ranks")
    assert first.folder == second.folder
    assert first.generation != second.generation
    for folder in (Path(first.folder), tmp_path / "ranks"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_folders_of_servers_that_are_no_more_go(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    old = tmp_path / str(ended.pid)
    running, other = tmp_path / str(os.getpid()), tmp_path / "notes"
    for folder in (old, running, other):
        folder.mkdir()
    (old / "trying-nccl").touch()
    arrange_meeting(tmp_path)
    assert not old.exists()
    assert running.exists()
    assert other.exists()
