"""Cluster: one or more machines and the network between them, as the wizard plans for them. Plain data."""

from __future__ import annotations

from msgspec import Struct

from backend.hardware.machine import Machine


class Network(Struct, frozen=True):
    """What joins machines.

    Attributes:
        id: of the table of links ("ib-ndr400"); empty where it was measured.
        name: for people.
        bandwidth: GB/s in one direction for each GPU, as built.
        reached: GB/s that messages of some MiB reach.
        latency: seconds of a small message.
        source: where these are from.
    """

    id: str
    name: str
    bandwidth: float
    reached: float
    latency: float
    source: str = ""


class Cluster(Struct, frozen=True):
    """Machines, the first one being where the server would run.

    Attributes:
        name: in words ("4x H100 80GB, NVLink").
        local: whether this is the computer itself, as read now.
        network: None for one machine.
    """

    machines: tuple[Machine, ...]
    name: str
    local: bool = False
    network: Network | None = None
