"""Peers: the processes of a group's ranks, and a sentence about which of them is to blame. They are not spoken to."""

from __future__ import annotations

import os
import select

import psutil

_STATES = {psutil.STATUS_STOPPED: "is stopped", psutil.STATUS_TRACING_STOP: "is held by a debugger"}


class Peers:
    """Made once all ranks are known; holds a file descriptor for each other process until it is closed."""

    def __init__(self, rank: int, pids: tuple[int, ...]) -> None:
        """pids: every rank's process, in order, this one's too."""
        self.rank = rank
        self.pids = pids
        self.files: dict[int, int] = {}
        for peer, pid in enumerate(pids):
            if peer != rank:
                file = _open_process(pid)
                if file is not None:
                    self.files[peer] = file

    @property
    def size(self) -> int:
        return len(self.pids)

    def ended(self, patience: float = 0.0) -> tuple[int, ...]:
        """Ranks whose processes are gone, reaped or not; waits up to `patience` seconds for a first one."""
        poll = select.poll()
        for file in self.files.values():
            poll.register(file, select.POLLIN)
        done = {file for file, _ in poll.poll(patience * 1000)}
        return tuple(peer for peer in range(self.size) if peer != self.rank and self.files.get(peer, -1) in {*done, -1})

    def verdict(self, patience: float = 0.0) -> str:
        """What is wrong with the other ranks' processes, or that nothing is to be seen within `patience` seconds."""
        ended = self.ended(patience)
        findings = [f"rank {peer} (process {self.pids[peer]}) has ended" for peer in ended]
        for peer, pid in enumerate(self.pids):
            state = None if peer == self.rank or peer in ended else _state_of(pid)
            if state is not None:
                findings.append(f"rank {peer} (process {pid}) {state}")
        return "; ".join(findings) or "all ranks' processes run"

    def close(self) -> None:
        for file in self.files.values():
            os.close(file)
        self.files.clear()


def _open_process(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends; None where it has ended."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _state_of(pid: int) -> str | None:
    try:
        return _STATES.get(psutil.Process(pid).status())
    except psutil.Error:
        return "has ended"
