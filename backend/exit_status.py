"""How a process' end reads, for logs and people; and the same without process ids, for people elsewhere."""

from __future__ import annotations

import re
import signal

_PID = re.compile(r" \(pid \d+\)")


def describe_exit(status: int) -> str:
    """What is to be said of a process that ended with this status, negative for a signal: "exited with status 1"."""
    if status >= 0:
        return f"exited with status {status}"
    name = signal.Signals(-status).name
    return f"was killed by {name}" + ("; the system does that when memory runs out" if name == "SIGKILL" else "")


def without_pids(text: str) -> str:
    """The text without the process ids that it names, which callers on other machines do not see."""
    return _PID.sub("", text)
