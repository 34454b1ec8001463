"""The picture of a cluster: its machines one below the other, and the network between them. Pure."""

from __future__ import annotations

from textual.content import Content

from app.tui.fit.canvas import Canvas
from app.tui.fit.machine_picture import draw_machine
from app.tui.fit.machine_words import machine_lines
from backend.hardware.cluster import Cluster, Network
from backend.hardware.machine import Machine

_MOST_DRAWN = 2


def picture_lines(cluster: Cluster, width: int) -> list[Content]:
    """Lines of at most `width` cells. Machines that are alike are drawn twice at most, then counted."""
    machines = cluster.machines
    several = len(machines) > 1
    lines: list[Content] = []
    for number, machine in enumerate(machines[:_MOST_DRAWN], start=1):
        if several:
            lines.append(Content.assemble((f"node {number}", "bold")))
        lines += draw_machine(machine, width)
        lines += machine_lines(machine, width)
        if several and number < len(machines):
            lines.append(_network(cluster.network, width))
    lines += _others(machines)
    return lines


def _others(machines: tuple[Machine, ...]) -> list[Content]:
    rest = machines[_MOST_DRAWN:]
    if not rest:
        return []
    alike = all(machine.gpus == machines[0].gpus for machine in rest)
    names = f"node {_MOST_DRAWN + 1}" if len(rest) == 1 else f"nodes {_MOST_DRAWN + 1} to {len(machines)}"
    what = "the same" if alike else ", ".join(f"{len(machine.gpus)} GPUs" for machine in rest)
    return [Content.assemble((names, "bold"), f": {what}")]


def _network(network: Network | None, width: int) -> Content:
    """A thick line, with the name and what messages reach."""
    canvas = Canvas(width)
    canvas.put(0, 0, "━" * width, "$warning")
    text = "an unnamed network" if network is None else f"{network.name}, {network.reached:.3g} GB/s a GPU"
    canvas.put(3, 0, f" {text} "[: max(0, width - 6)], "bold $text-warning")
    return canvas.lines()[0]
