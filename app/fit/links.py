"""What GPUs of each machine send each other for a model, and how long it takes: all-reduces and hand-overs."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

from msgspec import Struct

from app.fit.columns import columns
from app.fit.words import seconds
from app.text_safety import clean_line
from backend.hardware.cluster import Cluster, Network
from backend.planner.fit.known_model import KnownModel
from backend.planner.links import Link, link_of
from backend.planner.timing.communication import all_reduce_seconds, send_seconds

# Tokens of a step of a long prompt, as servers cut it.
CHUNK = 8192
_ELEMENT = 2
_HEAD = ("GPUs", "all-reduce", "a token", "8,192 tokens", "hand-over", "of 8,192 tokens")


class WayCost(Struct, frozen=True):
    """One way between GPUs, and what a model's messages take on it, in seconds.

    Attributes:
        ranks: GPUs that add up.
        one: an all-reduce of a token's hidden state.
        token: all of them of a token, two a layer.
        chunk: all of them of CHUNK tokens.
        send, send_chunk: handing a token, or a chunk, on to the next stage.
        message, token_bytes: of a hidden state, and of all all-reduces of a token.
    """

    hardware: str
    way: str
    ranks: int
    one: float
    token: float
    chunk: float
    send: float
    send_chunk: float
    message: int
    token_bytes: int


def way_costs(model: KnownModel, clusters: Sequence[Cluster], named: Sequence[str]) -> list[WayCost]:
    """Of each cluster: the way between the GPUs of its first machine, and its network."""
    layers = len(model.facts.layers) + sum(each.count for each in model.states)
    message = model.facts.hidden * _ELEMENT
    return [
        _cost(name, way, ranks, layers, message)
        for name, cluster in zip(named, clusters, strict=True)
        for way, ranks in _ways(cluster)
    ]


def _ways(cluster: Cluster) -> list[tuple[Link | Network, int]]:
    first = cluster.machines[0]
    count = len(first.gpus)
    ways: list[tuple[Link | Network, int]] = [(link_of(first, range(count)), count)] if count > 1 else []
    if cluster.network is not None:
        ways.append((cluster.network, sum(max(1, len(machine.gpus)) for machine in cluster.machines)))
    return ways


def _cost(name: str, way: Link | Network, ranks: int, layers: int, message: int) -> WayCost:
    one = all_reduce_seconds(way, ranks, message)
    return WayCost(
        hardware=name,
        way=way.name,
        ranks=ranks,
        one=one,
        token=2 * layers * one,
        chunk=2 * layers * all_reduce_seconds(way, ranks, CHUNK * message),
        send=send_seconds(way, message),
        send_chunk=send_seconds(way, CHUNK * message),
        message=message,
        token_bytes=2 * layers * message,
    )


def as_table(model: KnownModel, costs: Sequence[WayCost], width: int = 80) -> str:
    """A line a way, under the hardware's name."""
    if not costs:
        return "There is one GPU: nothing is sent."
    rows = [(str(cost.ranks), *map(_time, _times(cost))) for cost in costs]
    head, *figures = columns(_HEAD, rows, ">" * len(_HEAD), width - 2)
    first = costs[0]
    title = (
        f"{clean_line(model.name)}: {first.token_bytes // (2 * first.message)} layers, {first.message / 1024:,.4g} KiB "
        f"an all-reduce and token, {first.token_bytes / 2**20:.4g} MiB a token"
    )
    lines = [*wrap(title, width), "", f"  {head}"]
    for cost, line in zip(costs, figures, strict=True):
        lines += [f"{clean_line(cost.hardware)}: {cost.way}", f"  {line}"]
    legend = (
        "all-reduce: one, of one token; a token: all of them that a token of an answer waits for, two a layer; 8,192 "
        "tokens: all of them of so much of a prompt; hand-over: of one token to the next stage, and of 8,192."
    )
    return "\n".join([*lines, "", *wrap(legend, width, break_on_hyphens=False)])


def _times(cost: WayCost) -> tuple[float, ...]:
    return cost.one, cost.token, cost.chunk, cost.send, cost.send_chunk


def _time(amount: float) -> str:
    """Microseconds too, which links are about."""
    return (
        seconds(amount)
        if amount >= 1e-3
        else f"{amount * 1e6:.0f} us"
        if amount >= 9.95e-6
        else f"{amount * 1e6:.1f} us"
    )
