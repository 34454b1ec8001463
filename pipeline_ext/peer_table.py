"""PeerTable: the machines that have joined one hub: who they are, kept on disk, and how they are now.

The clock is given: monotonic seconds. Lines and Ray are others'; they tell the table what they hear.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from backend.hardware.machine import Machine
from pipeline_ext.peer import Health, Peer, PeerLink

SILENT_AFTER = 3.0
LOST_AFTER = 10.0
MOST_PEERS = 1000


class KnownPeer(Struct, frozen=True):
    """What is kept of a peer. `machine` is None until it has come for the first time."""

    id: str
    name: str
    address: str = ""
    version: str = ""
    machine: Machine | None = None
    link: PeerLink | None = None


@dataclass(slots=True)
class _Now:
    heard: float | None = None
    leaving: bool = False
    trouble: str = ""
    wildcard_ports: tuple[int, ...] = ()


class PeerTable:
    """Used from one thread. `path` is where it is kept; a broken file is an empty table."""

    def __init__(self, path: Path, now: Callable[[], float]) -> None:
        self._path, self._clock = path, now
        self._known: dict[str, KnownPeer] = {}
        self._now: dict[str, _Now] = {}
        for peer in _read(path):
            self._known[peer.id], self._now[peer.id] = peer, _Now()

    def __contains__(self, peer: str) -> bool:
        return peer in self._known

    def admit(self, peer: str, wished_name: str) -> str:
        """A machine that may come from now on: what it is called here, which nobody else is."""
        name = self._free_name(peer, wished_name)
        before = self._known.get(peer)
        self._known[peer] = replace(before, name=name) if before else KnownPeer(peer, name)
        self._now.setdefault(peer, _Now())
        self._keep()
        return name

    def remove(self, peer: str) -> None:
        self._known.pop(peer, None)
        self._now.pop(peer, None)
        self._keep()

    def find(self, name: str) -> str | None:
        """The id of the peer with this id or name."""
        return next((each.id for each in self._known.values() if name in (each.id, each.name)), None)

    def name(self, peer: str) -> str:
        return self._known[peer].name

    def came(self, peer: str, address: str, version: str, machine: Machine) -> None:
        """It is connected, from this address."""
        self._known[peer] = replace(self._known[peer], address=address, version=version, machine=machine)
        self._now[peer] = _Now(heard=self._clock())
        self._keep()

    def heard(self, peer: str, memory: int = 0) -> None:
        """A sign of life, with the bytes of memory that are available there."""
        if peer not in self._known:
            return
        self._now[peer].heard = self._clock()
        known = self._known[peer]
        if memory and known.machine is not None:
            self._known[peer] = replace(
                known, machine=replace(known.machine, memory=replace(known.machine.memory, available=memory))
            )

    def measured(self, peer: str, machine: Machine | None = None, link: PeerLink | None = None) -> None:
        """What is new of its hardware, or of the way to it."""
        known = self._known.get(peer)
        if known is not None:
            self._known[peer] = replace(known, machine=machine or known.machine, link=link or known.link)
            self._keep()

    def leaving(self, peer: str) -> None:
        self._now[peer].leaving = True

    def is_leaving(self, peer: str) -> bool:
        return peer in self._now and self._now[peer].leaving

    def ray(self, peer: str, trouble: str, wildcard_ports: tuple[int, ...]) -> None:
        """How its Ray node is."""
        if peer in self._now:
            self._now[peer].trouble, self._now[peer].wildcard_ports = trouble, wildcard_ports

    def trouble(self, peer: str) -> str:
        return self._now[peer].trouble

    def wildcard_ports(self, peer: str) -> tuple[int, ...]:
        return self._now[peer].wildcard_ports

    def health(self, peer: str) -> Health:
        now = self._now[peer]
        quiet = None if now.heard is None else self._clock() - now.heard
        if quiet is None or quiet > LOST_AFTER:
            return "lost"
        if quiet > SILENT_AFTER:
            return "silent"
        return "leaving" if now.leaving else "alive"

    def peers(self) -> tuple[Peer, ...]:
        """Those that have come at least once, by name."""
        return tuple(
            Peer(each.id, each.name, each.address, each.machine, each.link, self.health(each.id), each.version)
            for each in sorted(self._known.values(), key=lambda known: known.name)
            if each.machine is not None
        )

    def _free_name(self, peer: str, wished: str) -> str:
        base = re.sub(r"[^A-Za-z0-9._-]+", "-", wished).strip("-.")[:40] or "peer"
        taken = {each.name for each in self._known.values() if each.id != peer}
        count, name = 1, base
        while name in taken:
            count += 1
            name = f"{base}-{count}"
        return name

    def _keep(self) -> None:
        """Whole or not at all, for its owner only."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=self._path.parent, prefix=".peers-")
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(list(self._known.values())))
        os.replace(name, self._path)


def read_known(path: Path) -> tuple[Peer, ...]:
    """The peers as they were last, for who cannot ask a hub."""
    return tuple(
        Peer(each.id, each.name, each.address, each.machine, each.link, "lost", each.version)
        for each in _read(path)
        if each.machine is not None
    )


def _read(path: Path) -> list[KnownPeer]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[KnownPeer])
    except (OSError, msgspec.MsgspecError):
        return []
