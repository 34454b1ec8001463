"""own_processes: the processes of this user's running servers, so that doctor tells them from strangers."""

from __future__ import annotations

from contextlib import suppress

import psutil

from app.background import running_servers


def own_processes() -> frozenset[int]:
    """Ids of the servers and of all that they started."""
    found: set[int] = set()
    for record in running_servers():
        with suppress(psutil.Error):
            server = psutil.Process(record.pid)
            found |= {server.pid, *(child.pid for child in server.children(recursive=True))}
    return frozenset(found)
