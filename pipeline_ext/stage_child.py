"""StageChild: one stage process as whoever spawns it holds it: an engine on its own machine, or the agent on a peer.

It imports what it needs as soon as it is spawned, and waits for its first words on its standard input, so that one may
be kept warm before it is known for which engine; where the pipe ends before it has any, it ends.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from backend.engine_environment import process_environment
from backend.exit_status import describe_exit
from backend.frames import framed
from backend.hardware.cpu import read_cpu
from backend.process_log import open_log

STAGE_COMMAND = (sys.executable, "-P", "-m", "pipeline_ext.stage_process")
# Its argument where it is to die with the thread that started it.
DIES_WITH_PARENT = "dies-with-parent"


class StageStart(Struct, frozen=True, array_like=True, tag=True):
    """A stage process' first words: whom it works for.

    Attributes:
        worker, door, secret: as in SpawnOrder.
        address: of this machine's interface, on which a neighbour on another machine may come; empty where none may.
        identity: folder of this machine's identity, with which other machines are reached; empty where none are.
    """

    worker: str
    door: str
    secret: bytes
    address: str = ""
    identity: str = ""

    def __repr__(self) -> str:
        """Without the secret."""
        return f"StageStart(worker={self.worker!r}, door={self.door!r})"


encoder = msgspec.msgpack.Encoder()
start_decoder: msgspec.msgpack.Decoder[StageStart] = msgspec.msgpack.Decoder(StageStart)


class StageChild:
    """Made by `spawn`; safe from any thread."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @classmethod
    def spawn(
        cls,
        variables: Mapping[str, str] | None = None,
        log: Path | None = None,
        command: Sequence[str] = STAGE_COMMAND,
    ) -> StageChild:
        """Starts one, which dies with the thread that calls this. Raises OSError.

        variables: what it needs beside our own environment. log: gets its output; None leaves it on ours.
        """
        environment = process_environment(read_cpu().cores, os.environ) | dict(variables or {})
        with open_log(log) as output:
            process = subprocess.Popen(
                [*command, DIES_WITH_PARENT], stdin=subprocess.PIPE, stdout=output, stderr=output, env=environment
            )
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Also reaps it when it has ended."""
        return self._process.poll() is None

    @property
    def end(self) -> str:
        """How it ended, in words; empty while it lives."""
        status = self._process.poll()
        return "" if status is None else describe_exit(status)

    def start(self, words: StageStart) -> None:
        """Tells it whom it works for; once. Raises OSError where it has died."""
        pipe = self._process.stdin
        if pipe is None:
            raise OSError("the process has no standard input")
        pipe.write(framed(encoder.encode(words)))
        pipe.flush()

    def kill(self) -> None:
        """SIGKILL; also right for one that is frozen or has gone already. Reaped where that takes no time."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
