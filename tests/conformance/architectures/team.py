"""Team: the processes of the matrix's ranks, kept for all types; those that crash or hang are replaced by new ones."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from types import TracebackType

import msgspec

from tests.conformance.architectures.messages import Job, Reply

ROOT = Path(__file__).parents[3]
SECONDS = 90.0
_LAST_WORDS = 600


@dataclass(frozen=True)
class _Member:
    process: subprocess.Popen[bytes]
    connection: Connection
    log: Path


class Team:
    """Up to `size` ranks; a job is for the first few of them."""

    def __init__(self, size: int, folder: Path) -> None:
        """folder: private to the ranks, for their logs and where they meet."""
        self._size, self._folder = size, folder
        self._members: list[_Member] = []

    def __enter__(self) -> Team:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def run(self, job: Job, seconds: float = SECONDS) -> Reply:
        """Rank 0's reply, or the first of another rank that failed; refused only where every rank refuses alike."""
        if not self._members:
            self._members = [self._start(rank) for rank in range(self._size)]
        members = self._members[: len(job.attention)]
        for member in members:
            member.connection.send_bytes(msgspec.msgpack.encode(job))
        replies = self._replies(members, seconds)
        if isinstance(replies, Reply):
            self._end()
            return replies
        if len({(reply.outcome, reply.why, str(reply.tokens)) for reply in replies}) > 1:
            said = "; ".join(f"rank {rank} {reply.outcome} {reply.why}" for rank, reply in enumerate(replies))
            return Reply("failed", f"ranks do not agree: {said}")
        return replies[0]

    def _replies(self, members: list[_Member], seconds: float) -> list[Reply] | Reply:
        """Every rank's reply; one reply where a rank failed, ended or was late, after which ranks may be stuck."""
        deadline = time.monotonic() + seconds
        replies: dict[int, Reply] = {}
        while len(replies) < len(members):
            waiting = {member.connection: rank for rank, member in enumerate(members) if rank not in replies}
            ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                return Reply("failed", f"no answer within {seconds:.0f} s from ranks {sorted(waiting.values())}")
            for connection in ready:
                rank = waiting[connection]  # pyright: ignore[reportArgumentType] - one of those it was given
                replies[rank] = self._reply(members[rank], rank)
                if replies[rank].outcome == "failed":
                    return replies[rank]
        return [replies[rank] for rank in range(len(members))]

    def _reply(self, member: _Member, rank: int) -> Reply:
        try:
            return msgspec.msgpack.decode(member.connection.recv_bytes(), type=Reply)
        except (EOFError, ConnectionError):
            status = member.process.wait()
            return Reply("failed", f"rank {rank} ended with {status}: {member.log.read_text()[-_LAST_WORDS:]}")

    def _start(self, rank: int) -> _Member:
        ours, theirs = Pipe()
        log = self._folder / f"{rank}.log"
        with log.open("wb") as output, theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.conformance.architectures.rank", str(rank), str(theirs.fileno()),
                 str(self._folder)],
                cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=[theirs.fileno()],
            )  # fmt: skip
        return _Member(process, ours, log)

    def _end(self) -> None:
        for member in self._members:
            member.process.kill()
        for member in self._members:
            member.process.wait()
            member.connection.close()
        self._members = []
