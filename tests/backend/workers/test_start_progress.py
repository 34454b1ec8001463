"""Several ranks' starts as one."""

from __future__ import annotations

from backend.workers.start_progress import StartProgress
from backend.workers.worker_messages import Loading


def test_the_slowest_rank_gives_the_stage_and_bytes_add_up() -> None:
    progress = StartProgress(2)
    assert progress.report(0, Loading("load", 0, 100)) == Loading("read")
    assert progress.report(1, Loading("load", 30, 60)) == Loading("load", 30, 160)
    assert progress.report(0, Loading("load", 100, 100)) == Loading("load", 130, 160)
    assert progress.report(0, Loading("pack")) == Loading("load", 130, 160)
    assert progress.report(1, Loading("load", 60, 60)) == Loading("load", 160, 160)
    assert progress.report(1, Loading("warm up")) == Loading("pack")
    assert progress.report(0, Loading("warm up")) == Loading("warm up")


def test_a_stage_that_nobody_knows_changes_nothing() -> None:
    assert StartProgress(1).report(0, Loading("think", 1, 2)) == Loading("read")
