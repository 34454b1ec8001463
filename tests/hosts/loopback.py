"""LoopbackHosts: hosts where namespaces cannot be made: plain processes, each host with its own loopback address.

Their processes can be killed and stopped. Links cannot be cut or slowed here: loopback has none.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.hosts.host import MARK, Host, UnsupportedError, end_all

_NO_LINKS = "loopback has no links to cut or to slow; hosts that are network namespaces have"


@dataclass
class LoopbackHost(Host):
    """The processes with its mark in their environment."""

    def _inside(self, command: tuple[str, ...]) -> list[str]:
        return list(command)

    def _candidates(self) -> list[psutil.Process]:
        found = list[psutil.Process]()
        for process in psutil.process_iter():
            # Those of others cannot be looked into, and are none of ours.
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(MARK) == self.mark:
                    found.append(process)
        return found


class LoopbackHosts:
    """127.0.0.1 is left to the tests themselves."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="sw", dir="/tmp"))
        self._hosts = {
            name: LoopbackHost(name, f"127.0.0.{number}", self.folder / name) for number, name in enumerate(names, 2)
        }

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]

    def __iter__(self) -> Iterator[Host]:
        return iter(self._hosts.values())

    @contextmanager
    def entered(self, name: str) -> Iterator[None]:
        yield

    def cut(self, name: str) -> None:
        raise UnsupportedError(_NO_LINKS)

    def part(self, one: str, other: str) -> None:
        raise UnsupportedError(_NO_LINKS)

    def heal(self) -> None:
        """There is nothing that could be broken."""

    def shape(self, name: str, delay: float = 0.0, bandwidth: float | None = None) -> None:
        raise UnsupportedError(_NO_LINKS)

    def close(self) -> None:
        end_all(self._hosts.values())
        shutil.rmtree(self.folder, ignore_errors=True)
