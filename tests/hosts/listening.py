"""Prints the sockets on which processes could be called, as JSON: address, port, process id, its command.

python -m tests.hosts.listening PID...
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress

import psutil

MOST_COMMAND_CHARACTERS = 300


def listening(pid: int) -> list[tuple[str, int, int, str]]:
    """TCP that listens and UDP that is bound, of one process; none where it is gone."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        sockets = [each for each in process.net_connections("inet") if each.laddr]
        command = " ".join(process.cmdline())[:MOST_COMMAND_CHARACTERS] or process.name()
        return [
            (each.laddr.ip, each.laddr.port, pid, command)
            for each in sockets
            if each.status == psutil.CONN_LISTEN or (each.status == psutil.CONN_NONE and not each.raddr)
        ]
    return []


if __name__ == "__main__":
    print(json.dumps([each for pid in sys.argv[1:] for each in listening(int(pid))]))
