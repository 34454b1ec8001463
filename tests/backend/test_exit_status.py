"""How a process' end reads."""

from __future__ import annotations

from backend.exit_status import describe_exit, without_pids


def test_statuses_and_signals_have_words() -> None:
    assert describe_exit(3) == "exited with status 3"
    assert describe_exit(-15) == "was killed by SIGTERM"
    assert describe_exit(-9).startswith("was killed by SIGKILL; the system does that")


def test_people_elsewhere_see_no_process_ids() -> None:
    told = "rank 1 (pid 123) was killed by SIGKILL, then rank 0 (pid 7): it was silent (for 2 s)"
    assert without_pids(told) == "rank 1 was killed by SIGKILL, then rank 0: it was silent (for 2 s)"
