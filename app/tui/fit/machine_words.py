"""A machine's links, and what is left out or held by others, as lines below its picture. Pure."""

from __future__ import annotations

from itertools import combinations
from textwrap import wrap

from textual.content import Content

from app.text_safety import clean_line
from app.tui.fit.machine_picture import bus_name, nvlink
from backend.hardware.gpu import Gpu, Way
from backend.hardware.machine import Machine
from backend.hardware.sharing import sharing_of

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


def machine_lines(machine: Machine, width: int) -> list[Content]:
    """Sentences of at most `width` cells a line, warnings marked."""
    plain = [("", text) for text in (*_links(machine), *_shared(machine, harm=False))]
    marked = [("!", text) for text in (*_faults(machine), *_shared(machine, harm=True), *_peers(machine))]
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
        f"NVLink {_names([pair for pair in pairs if speeds[pair] == speed])}: {speed:.3g} GB/s each way"
        for speed in sorted({speed for speed in speeds.values() if speed}, reverse=True)
    ]
    return lines + _over_pcie(machine, [pair for pair in pairs if not speeds[pair]], bool(lines))


def _names(pairs: list[tuple[Gpu, Gpu]]) -> str:
    return ", ".join(f"{a.index}-{b.index}" for a, b in pairs)


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
    lines = [_sentence(f"Left out: {fault.what}", fault.fix) for fault in machine.left_out]
    return [*lines, *([_sentence(machine.gpu_problem)] if machine.gpu_problem else [])]


def _shared(machine: Machine, harm: bool) -> list[str]:
    """How others use the GPUs that are left, and what to do where that does harm."""
    return [
        _sentence(sharing.what, sharing.fix if harm else "")
        for gpu in machine.gpus
        for sharing in sharing_of(gpu, machine.pod)
        if sharing.harm is harm
    ]


def _sentence(*parts: str) -> str:
    return " ".join(clean_line(part, 600) for part in parts if part)


def _peers(machine: Machine) -> list[str]:
    number = {gpu.uuid: gpu.index for gpu in machine.gpus}
    return [
        f"GPU {number[peer.first]} and GPU {number[peer.second]}: {clean_line(peer.problem, 200)}"
        for peer in machine.peers
        if peer.problem and peer.first in number and peer.second in number
    ]
