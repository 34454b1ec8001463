"""Wire: holds what a network interface sends and gets for a while; the process that does so is `wire_process`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Wire:
    """The process; `prefix` is the command that runs another in the interfaces' namespace."""

    def __init__(self, prefix: list[str], one: str, other: str) -> None:
        command = [*prefix, sys.executable, "-m", "tests.hosts.wire_process", one, other]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._answer()

    def shape(self, delay: float, bandwidth: float | None) -> None:
        """Returns when it holds for the next frame."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{delay} {bandwidth or 0}\n".encode())
        self._process.stdin.flush()
        self._answer()

    def _answer(self) -> None:
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ok\n":
            raise RuntimeError("The wire's process has ended.")

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
