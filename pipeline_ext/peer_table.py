"""PeerTable: the machines that have joined one hub: who they are, kept on disk; how they are is `membership`'s.

Lines and Ray are others'; they tell the table what they hear, and how much time has passed.
"""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from backend.hardware.machine import Machine
from pipeline_ext.membership import Membership
from pipeline_ext.peer import Health, Peer, PeerLink

MOST_PEERS = 1000


class KnownPeer(Struct, frozen=True):
    """What is kept of a peer. `machine` is None until it has come for the first time."""

    id: str
    name: str
    address: str = ""
    version: str = ""
    machine: Machine | None = None
    link: PeerLink | None = None


@dataclass(frozen=True, slots=True)
class _Ray:
    trouble: str
    wildcard_ports: tuple[int, ...]


class PeerTable:
    """Used from one thread. `path` is where it is kept; a broken file is an empty table."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._membership = Membership()
        self._lines = 0
        self._known = {peer.id: peer for peer in _read(path)}
        self._ray: dict[str, _Ray] = {}

    def __contains__(self, peer: str) -> bool:
        return peer in self._known

    def admit(self, peer: str, wished_name: str) -> str:
        """A machine that may come from now on: what it is called here, which nobody else is."""
        name = self._free_name(peer, wished_name)
        before = self._known.get(peer)
        self._known[peer] = replace(before, name=name) if before else KnownPeer(peer, name)
        self._keep()
        return name

    def remove(self, peer: str) -> None:
        self._known.pop(peer, None)
        self._ray.pop(peer, None)
        self._membership.remove(peer)
        self._keep()

    def find(self, name: str) -> str | None:
        """The id of the peer with this id or name."""
        return next((each.id for each in self._known.values() if name in (each.id, each.name)), None)

    def name(self, peer: str) -> str:
        return self._known[peer].name

    def came(self, peer: str, address: str, version: str, machine: Machine) -> int:
        """It is connected, from this address: the number of its line, by which later ones are told from it."""
        self._known[peer] = replace(self._known[peer], address=address, version=version, machine=machine)
        self._lines += 1
        self._membership.joined(peer, self._lines)
        self._keep()
        return self._lines

    def heard(self, peer: str, line: int, memory: int = 0) -> bool:
        """A sign of life, with the bytes of memory that are available there. False: that line does not count any
        more, and is to be closed."""
        known = self._known.get(peer)
        if known is None or not self._membership.heard(peer, line):
            return False
        if memory and known.machine is not None:
            self._known[peer] = replace(
                known, machine=replace(known.machine, memory=replace(known.machine.memory, available=memory))
            )
        return True

    def gone(self, peer: str, line: int) -> None:
        """That line has ended."""
        self._membership.gone(peer, line)

    def passed(self, seconds: float) -> None:
        """So much time has passed; to be told some times a second."""
        self._membership.passed(seconds)

    def measured(self, peer: str, machine: Machine | None = None, link: PeerLink | None = None) -> None:
        """What is new of its hardware, or of the way to it."""
        known = self._known.get(peer)
        if known is not None:
            self._known[peer] = replace(known, machine=machine or known.machine, link=link or known.link)
            self._keep()

    def leaving(self, peer: str) -> None:
        self._membership.leave(peer)

    def ray(self, peer: str, trouble: str, wildcard_ports: tuple[int, ...]) -> None:
        """How its Ray node is."""
        if peer in self._known:
            self._ray[peer] = _Ray(trouble, wildcard_ports)

    def trouble(self, peer: str) -> str:
        """Of its Ray node; empty where there is none, or nothing was heard of it."""
        return self._ray[peer].trouble if peer in self._ray else ""

    def wildcard_ports(self, peer: str) -> tuple[int, ...]:
        return self._ray[peer].wildcard_ports if peer in self._ray else ()

    def health(self, peer: str) -> Health:
        """One that has not come since this hub was started is lost until it does."""
        return self._membership.health(peer) or "lost"

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
