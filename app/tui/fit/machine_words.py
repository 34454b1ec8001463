"""A machine's links, and what is left out or held by others, as lines below its picture. Pure."""

from __future__ import annotations

from itertools import combinations
from textwrap import wrap

from textual.content import Content

from app.text_safety import clean_line
from app.tui.fit import words
from app.tui.fit.machine_picture import bus_name, nvlink
from backend.hardware.gpu import Gpu, Way
from backend.hardware.machine import Machine

WAYS: dict[Way, str] = {
    "nvswitch": "NVSwitch",
    "nvlink": "NVLink",
    "board": "one board",
    "switch": "a PCIe switch",
    "switches": "several PCIe switches",
    "host bridge": "the PCIe host bridge",
    "node": "the processor's PCIe",
    "system": "the link between processors",
    "unknown": "a way that the driver does not tell",
}
_MOST_HOLDERS = 3


def machine_lines(machine: Machine, width: int) -> list[Content]:
    """Sentences of at most `width` cells a line, warnings marked."""
    plain = [("", text) for text in _links(machine)]
    marked = [("!", text) for text in (*_faults(machine), *_holders(machine), *_peers(machine))]
    lines: list[Content] = []
    for mark, text in plain + marked:
        style = "$text-warning" if mark else "$text-muted"
        lead = f"{mark} " if mark else ""
        lines += [Content.styled(line, style) for line in wrap(lead + text, max(20, width), subsequent_indent="  ")]
    return lines


def _links(machine: Machine) -> list[str]:
    if not machine.gpus:
        return [] if machine.gpu_problem else ["No GPU here: models run on the processor."]
    if len(machine.gpus) == 1 or bus_name(machine):
        return []
    pairs = list(combinations(machine.gpus, 2))
    speeds = {(a, b): nvlink(machine, a, b) for a, b in pairs}
    lines = [
        f"NVLink {', '.join(f'{a.index}–{b.index}' for a, b in pairs if speeds[a, b] == speed)}: {speed:.3g} GB/s each way"
        for speed in sorted({speed for speed in speeds.values() if speed}, reverse=True)
    ]
    return lines + _over_pcie(machine, [pair for pair in pairs if not speeds[pair]], bool(lines))


def _over_pcie(machine: Machine, pairs: list[tuple[Gpu, Gpu]], some_joined: bool) -> list[str]:
    """How GPUs without NVLink reach each other, and whether directly."""
    links = [machine.link(a.index, b.index) for a, b in pairs]
    ways = dict.fromkeys(WAYS[link.way] for link in links if link is not None)
    if not ways:
        return []
    direct = all(link is not None and link.peer for link in links)
    who = "the other pairs" if some_joined else "GPUs"
    how = "write to each other" if direct else "exchange through main memory (no direct writes)"
    return [f"{who[0].upper()}{who[1:]} meet at {' or '.join(ways)} and {how}"]


def _faults(machine: Machine) -> list[str]:
    lines = [f"GPU {fault.index} is left out: {clean_line(fault.what, 300)}" for fault in machine.left_out]
    return [*lines, *([clean_line(machine.gpu_problem, 300)] if machine.gpu_problem else [])]


def _holders(machine: Machine) -> list[str]:
    lines: list[str] = []
    for gpu in machine.gpus:
        held = [
            f"{clean_line(each.name, 40) or 'a process'} (pid {each.pid}"
            + (f", {words.memory(each.bytes)})" if each.bytes else ")")
            for each in gpu.holders[:_MOST_HOLDERS]
        ]
        more = f" and {len(gpu.holders) - _MOST_HOLDERS} more" if len(gpu.holders) > _MOST_HOLDERS else ""
        if held:
            lines.append(f"GPU {gpu.index}: {words.memory(gpu.total - gpu.free)} held by {', '.join(held)}{more}")
    return lines


def _peers(machine: Machine) -> list[str]:
    number = {gpu.uuid: gpu.index for gpu in machine.gpus}
    return [
        f"GPU {number[peer.first]} and GPU {number[peer.second]}: {clean_line(peer.problem, 200)}"
        for peer in machine.peers
        if peer.problem and peer.first in number and peer.second in number
    ]
