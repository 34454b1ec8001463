"""Site: a machine that stages may be put on, and the ways between two of them. Plain data and sums."""

from __future__ import annotations

from dataclasses import dataclass

from backend.hardware.cluster import Cluster, Network
from backend.hardware.machine import Machine
from backend.planner.fit.shape import Seat

# What one stream of ours reaches, in GB/s: it is encrypted between machines, and copied twice. Assumed.
_STREAM_RATE = 1.5
# Seconds that a message needs on one machine, and at least between two. Assumed.
_LOCAL_LATENCY, _LEAST_LATENCY = 60e-6, 150e-6
# A network of which nothing is known is taken for an office's.
_UNKNOWN_RATE, _UNKNOWN_LATENCY = 0.1, 1e-3


@dataclass(frozen=True, slots=True)
class Site:
    """A machine.

    Attributes:
        id: of the peer; empty for the head, on which the engine runs.
        name: for people.
        way: between it and the head; None for the head itself, and where nothing was measured.
    """

    id: str
    name: str
    machine: Machine
    way: Network | None = None


def sites_of(cluster: Cluster) -> tuple[Site, ...]:
    """A cluster's machines, the first of which is the head, all joined by the one network that it tells of."""
    head, *others = cluster.machines
    sites = (Site(f"machine-{n}", f"machine {n}", one, cluster.network) for n, one in enumerate(others, start=2))
    return (Site("", "machine 1" if others else "this machine", head), *sites)


def measured_way(name: str, latency: float, bandwidth: float) -> Network:
    """The way to a peer as it was measured: seconds for a small message, and bytes a second."""
    rate = bandwidth / 1e9
    return Network("", f"the network to {name}", rate, rate, latency, "measured")


def way_between(sites: tuple[Site, ...], one: Seat, other: Seat) -> Network:
    """What hidden states pass from one stage to the next.

    Between two peers nothing was measured: what is slower of their ways to the head is taken.
    """
    if one.machine == other.machine:
        return Network("", "this machine's memory", _STREAM_RATE, _STREAM_RATE, _LOCAL_LATENCY, "assumed")
    found = [_to_head(sites[seat.machine]) for seat in (one, other) if sites[seat.machine].id]
    slowest = max(found, key=lambda way: way.latency)
    rate = min(_STREAM_RATE, *(way.reached for way in found))
    return Network(slowest.id, slowest.name, rate, rate, max(_LEAST_LATENCY, slowest.latency), slowest.source)


def seconds_from_head(site: Site) -> float:
    """That a small message between the engine and a stage there takes."""
    return _LOCAL_LATENCY if not site.id else max(_LEAST_LATENCY, _to_head(site).latency)


def _to_head(site: Site) -> Network:
    if site.way is not None:
        return site.way
    return Network("", f"the network to {site.name}", _UNKNOWN_RATE, _UNKNOWN_RATE, _UNKNOWN_LATENCY, "assumed")
