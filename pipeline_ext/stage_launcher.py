"""StageLauncher: starts the processes of stages on this machine, so that they outlive whoever did, and kills them.

It runs in Ray's actor on a peer. One process is kept warm: started, its imports done, waiting for its first words (see
`stage_child`); it ends where the launcher does before it has any.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from backend.engine_environment import process_environment
from backend.frames import framed
from backend.hardware.cpu import read_cpu
from pipeline_ext.cluster import SpawnOrder
from pipeline_ext.stage_child import STAGE_COMMAND, StageStart, encoder

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_KEPT_NOTES = 256
_START_SECONDS = 10.0


class LaunchError(RuntimeError):
    """It was not started; says why."""


class StageLauncher:
    """Args:
    folder: where it notes which process is whose (and their logs lie), so that one that comes after can kill them.
    address, identity: as in StageStart, of this machine.
    inherited: the environment that processes get, before what they need to compute.
    """

    def __init__(
        self,
        folder: Path,
        address: str,
        identity: str,
        inherited: Mapping[str, str],
        command: Sequence[str] = STAGE_COMMAND,
    ) -> None:
        self._folder, self._address, self._identity = folder, address, identity
        self._command = command
        self._environment = process_environment(read_cpu().cores, inherited)
        self._warm: _Started | None = None
        self._variables: tuple[tuple[str, str], ...] = ()  # of the newest order, and the warm process
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._forget_old()

    def keep_warm(self) -> None:
        """One process more than is needed, so that the next order like the last does not wait for imports.

        Raises LaunchError.
        """
        if self._warm is None or not self._warm.alive():
            self.close()
            self._warm = self._start(self._variables)

    def spawn(self, order: SpawnOrder) -> None:
        """Raises LaunchError; then none of the order's processes is left."""
        _check(order)
        started: list[str] = []
        try:
            for worker in order.workers:
                self._begin(worker, order)
                started.append(worker)
        except (OSError, psutil.Error, LaunchError) as error:
            self.kill(tuple(started))
            raise LaunchError(f"a process could not be started: {error}") from None

    def kill(self, workers: tuple[str, ...]) -> None:
        """Those that are there, and were started here, by whichever launcher of this folder."""
        for worker in workers:
            if not _NAME.fullmatch(worker):
                continue
            note = self._folder / f"{worker}.pid"
            with contextlib.suppress(OSError, ValueError, psutil.Error):
                pid, created = note.read_text().split()
                process = psutil.Process(int(pid))
                # Process ids are used again: only the one that was started then is ours.
                if abs(process.create_time() - float(created)) < 0.05:
                    process.send_signal(signal.SIGKILL)
            with contextlib.suppress(OSError):
                note.unlink(missing_ok=True)

    def close(self) -> None:
        """Ends the warm process; others go on."""
        if self._warm is not None:
            self._warm.drop()
            self._warm = None

    def _begin(self, worker: str, order: SpawnOrder) -> None:
        if order.environment != self._variables:
            self._variables = order.environment
            self.close()
        warm, self._warm = self._warm, None
        started = warm if warm is not None and warm.alive() else self._start(order.environment)
        created = psutil.Process(started.pid).create_time()
        (self._folder / f"{worker}.pid").write_text(f"{started.pid} {created!r}")
        words = StageStart(worker, order.door, order.secret, self._address, self._identity)
        started.give(framed(encoder.encode(words)))

    def _start(self, variables: tuple[tuple[str, str], ...]) -> _Started:
        """Kept by a process that is nobody's child, so that who reaps or kills ours does not find it among them."""
        read_end, write_end = os.pipe()
        log = {"SHARDWISE_STAGE_LOG": str(self._folder / "stages.log")}
        try:
            launched = subprocess.run(
                [sys.executable, "-I", "-S", str(Path(__file__).with_name("detach.py")), *self._command],
                stdin=read_end,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=self._environment | dict(variables) | log,
                timeout=_START_SECONDS,
                check=True,
            )
            return _Started(int(launched.stdout), write_end)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            os.close(write_end)
            raise LaunchError(str(error)) from None
        finally:
            os.close(read_end)

    def _forget_old(self) -> None:
        """Notes of processes that have ended long ago."""
        notes = sorted(self._folder.glob("*.pid"), key=lambda path: path.stat().st_mtime)
        for note in notes[:-_KEPT_NOTES]:
            note.unlink(missing_ok=True)


class _Started:
    """A process that waits for its first words, which go into `pipe`."""

    def __init__(self, pid: int, pipe: int) -> None:
        self.pid, self._pipe = pid, pipe

    def alive(self) -> bool:
        try:
            return psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def give(self, words: bytes) -> None:
        """A pipe takes so few at once: this never waits for the process."""
        try:
            os.write(self._pipe, words)
        finally:
            self.drop()

    def drop(self) -> None:
        os.close(self._pipe)


def _check(order: SpawnOrder) -> None:
    names_good = all(_NAME.fullmatch(worker) for worker in order.workers)
    if not order.workers or len(order.workers) > 64 or not names_good:
        raise LaunchError("the order names no processes, or names them wrongly")
    if not all(_VARIABLE.fullmatch(name) and "\0" not in value for name, value in order.environment):
        raise LaunchError("the order has variables that are none")
    if len(order.door) > 256 or len(order.secret) > 256:
        raise LaunchError("the order is longer than any")
