"""Peer: one machine that stages may be put on, as the hub knows it. Plain data."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from backend.hardware.machine import Machine

# alive: heard within 3 s. silent: not heard since, not given up yet. lost: given up. leaving: wants to go politely.
Health = Literal["alive", "silent", "lost", "leaving"]


class PeerLink(Struct, frozen=True):
    """What was measured between the head and a peer: seconds one way for a small message, and bytes a second."""

    latency: float
    bandwidth: float


class Peer(Struct, frozen=True):
    """One machine.

    Attributes:
        id: short and lasting, made of its certificate; empty for the head itself.
        name: what it calls itself, for people.
        address: of the interface on which it is reached.
        machine: its hardware, as it read it last.
        link: None for the head, and until it has been measured.
        version: of shardwise there.
    """

    id: str
    name: str
    address: str
    machine: Machine
    link: PeerLink | None
    health: Health
    version: str
