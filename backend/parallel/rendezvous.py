"""Rendezvous: how ranks that know a folder find each other: a file store in it, and who is there. No socket is opened.

torch's TCPStore would listen on every interface.
"""

from __future__ import annotations

import os
import stat
import time
from datetime import timedelta
from pathlib import Path

from torch._C._distributed_c10d import FileStore, PrefixStore, Store

from backend.errors import SettingError
from backend.executor import DeviceLostError
from backend.parallel.peers import Peers

LOOK_SECONDS = 0.01
# How long a rank that waited in vain gives the others to say that they did, too.
WORD_SECONDS = 0.3


class Rendezvous:
    """One rank's end of a meeting: `store` for what has to be told once, `peers` for who lives."""

    def __init__(self, store: Store, path: Path, peers: Peers) -> None:
        self.store = store
        self.peers = peers
        self._path = path

    def prefixed(self, prefix: str) -> Store:
        """The store for one user of it, whose keys are its own."""
        return PrefixStore(prefix, self.store)

    def waiting(self, what: str) -> tuple[int, ...]:
        """The ranks that are stuck in the same call `what` or come to it within a moment; this one is told to them."""
        self.store.set(f"stuck/{what}/{self.peers.rank}", "")
        ranks = [rank for rank in range(self.peers.size) if rank != self.peers.rank]
        deadline = time.monotonic() + WORD_SECONDS
        arrived: set[int] = set()
        while len(arrived) < len(ranks) and time.monotonic() < deadline:
            arrived = {rank for rank in ranks if self.store.check([f"stuck/{what}/{rank}"])}
            time.sleep(LOOK_SECONDS)
        return tuple(sorted({self.peers.rank, *arrived}))

    def close(self) -> None:
        self.peers.close()
        self._path.unlink(missing_ok=True)


def meet(rank: int, size: int, folder: Path, generation: str, seconds: float) -> Rendezvous:
    """Waits until all ranks of this generation are there.

    folder: exists, this user's, closed to others (0700). A generation is met once: a rank that starts again needs
    a new one.

    Raises:
        SettingError: others may enter the folder.
        DeviceLostError: a rank did not come within `seconds`; names it.
    """
    _check_private(folder)
    path = folder / f"ranks-{generation}"
    store = FileStore(str(path), size)
    store.set_timeout(timedelta(seconds=seconds))
    store.set(f"pid/{rank}", str(os.getpid()))
    deadline = time.monotonic() + seconds
    while missing := [peer for peer in range(size) if not store.check([f"pid/{peer}"])]:
        if time.monotonic() > deadline:
            raise DeviceLostError(
                f"rank {rank} of {size} waited {seconds:.0f} s at the start for {_ranks(missing)}, which did not come. "
                "Its own log tells why; a longer --collective-timeout gives it more time."
            )
        time.sleep(LOOK_SECONDS)
    pids = tuple(int(store.get(f"pid/{peer}")) for peer in range(size))
    return Rendezvous(store, path, Peers(rank, pids))


def _ranks(ranks: list[int]) -> str:
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))


def _check_private(folder: Path) -> None:
    status = folder.stat()
    if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise SettingError(
            f"The folder {folder}, where ranks meet, is open to other users.",
            f"Its owner is {status.st_uid} and its mode {stat.S_IMODE(status.st_mode):o}.",
            f"chmod 700 {folder}",
        )
