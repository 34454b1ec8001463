"""The picture of one machine: GPUs as boxes in rows, PCIe to the processor above them, NVLink between them. Pure.

```
 CPU Xeon 8480C, 112 cores, 1.9 of 2.0 TiB free
 ├NUMA 0────┬─PCIe 5 x16┬───────────┬───────────┬
 │ ┌GPU 0───┴─┐┌GPU 1───┴─┐┌GPU 2───┴─┐┌GPU 3───┴─┐
 │ │H100 80GB │…
 │ │79.2/79.6 │
 │ └────╥─────┘└────╥─────┘└────╥─────┘└────╥─────┘
 │ ═════╩══ NVSwitch 450 GB/s each way ═════╩══════
```
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations

from textual.content import Content

from app.text_safety import clean_line
from app.tui.fit import words
from app.tui.fit.canvas import Canvas
from backend.hardware.cpu import Cpu
from backend.hardware.gpu import Gpu
from backend.hardware.machine import Machine

_MOST_IN_A_ROW = 4
_LEAST_BOX, _MOST_BOX = 11, 22
_TRUNK = 2
_NOISE = re.compile(
    r"\b(NVIDIA|AMD|Intel|GeForce|Tesla|Quadro|Graphics|HBM\w*|PCIe|SXM\d?|NVL)\b|\((R|TM)\)", re.IGNORECASE
)
BOX, PCIE, NVLINK = "$primary", "$text-muted", "bold $accent"


def draw_machine(machine: Machine, width: int) -> list[Content]:
    """Lines of at most `width` cells: the processor, and the GPUs below it."""
    canvas = Canvas(width)
    if not machine.gpus:
        return _processor_alone(machine, canvas)
    canvas.put(0, 0, f"CPU {processor(machine)}", "")
    rows = gpu_rows(machine, (width - _TRUNK) // (_LEAST_BOX + 1))
    box = min(_MOST_BOX, (width - _TRUNK) // max(len(row) for row in rows) - 1)
    bus = bus_name(machine)
    y = 1
    for number, row in enumerate(rows):
        # Of two rows on one bus, the second hangs upside down, so that the bus lies between them.
        flipped = bool(bus) and number % 2 == 1
        y = _draw_row(canvas, machine, row, box, y, bus, flipped, last=number == len(rows) - 1)
    return canvas.lines()


def processor(machine: Machine) -> str:
    """`Xeon 8480C, 112 cores, 1.9 TiB of 2.0 TiB free`."""
    memory = machine.memory
    return f"{cores(machine.cpu)}, {words.memory(memory.available)} of {words.memory(memory.total)} free"


def cores(cpu: Cpu) -> str:
    """Name and cores; a processor of which only these are known is named after them."""
    count = f"{cpu.usable_cores} core{'s' if cpu.usable_cores != 1 else ''}"
    return cpu.name if count in cpu.name else f"{short_name(cpu.name, 28)}, {count}"


def short_name(name: str, most: int) -> str:
    """A device's name without what all of its kind share: `H100 80GB` for `NVIDIA H100 80GB HBM3`."""
    short = " ".join(_NOISE.sub(" ", clean_line(name, 80)).replace("-", " ").split()) or "unnamed"
    return short if len(short) <= most else short[: most - 1] + "…"


def gpu_rows(machine: Machine, most: int) -> list[tuple[Gpu, ...]]:
    """GPUs by NUMA node, those with NVLinks of their own side by side, in rows of even length."""
    most = max(1, min(_MOST_IN_A_ROW, most))
    nodes = sorted({gpu.numa_node if gpu.numa_node is not None else -1 for gpu in machine.gpus})
    rows: list[tuple[Gpu, ...]] = []
    for node in nodes:
        gpus = _neighbours(
            machine, [gpu for gpu in machine.gpus if (gpu.numa_node if gpu.numa_node is not None else -1) == node]
        )
        count = -(-len(gpus) // most)
        length = -(-len(gpus) // count)
        rows += [tuple(gpus[start : start + length]) for start in range(0, len(gpus), length)]
    return rows


def _neighbours(machine: Machine, gpus: list[Gpu]) -> list[Gpu]:
    """The same GPUs, each followed by those that NVLinks join it to."""
    ordered: list[Gpu] = []
    for gpu in gpus:
        if gpu not in ordered:
            ordered.append(gpu)
            ordered += [other for other in gpus if other not in ordered and nvlink(machine, gpu, other)]
    return ordered


def nvlink(machine: Machine, first: Gpu, second: Gpu) -> float:
    """GB/s in one direction over NVLink; 0 without."""
    link = machine.link(first.index, second.index)
    return link.nvlink if link is not None and link.way in ("nvlink", "nvswitch") else 0.0


def bus_name(machine: Machine) -> str:
    """What joins all GPUs alike, `NVSwitch 450 GB/s each way`; empty where nothing does, or two alone have a bridge."""
    links = [machine.link(first.index, second.index) for first, second in combinations(machine.gpus, 2)]
    speeds = {round(link.nvlink, 1) for link in links if link is not None}
    if len(machine.gpus) < 3 or None in links or len(speeds) != 1 or 0 in speeds:
        return ""
    switched = all(link is not None and link.way == "nvswitch" for link in links)
    return f"{'NVSwitch' if switched else 'NVLink'} {speeds.pop():.3g} GB/s each way"


def _draw_row(
    canvas: Canvas, machine: Machine, row: Sequence[Gpu], box: int, y: int, bus: str, flipped: bool, last: bool
) -> int:
    """Draws a row of boxes with its lines from `y` on; the first line below it."""
    top = y if flipped else y + 1
    pcie = y + 4 if flipped else y
    height = 5 + bool(bus and not flipped)
    for line in range(y, y + height):
        if not last or line <= pcie:
            canvas.put(0, line, "│", PCIE)
    end = _TRUNK + (len(row) - 1) * (box + 1) + box - 3
    canvas.put(0, pcie, ("└" if last else "├") + "─" * end, PCIE)
    for place, gpu in enumerate(row):
        x = _TRUNK + place * (box + 1)
        _draw_box(canvas, gpu, x, top, box, flipped, bool(bus))
        outer = place == len(row) - 1
        canvas.put(x + box - 3, pcie, ("┘" if outer else "┴") if flipped else ("┐" if outer else "┬"), PCIE)
        if place and not bus and nvlink(machine, row[place - 1], gpu):
            canvas.put(x - 2, top + 1, "╞═╡", NVLINK)
            canvas.put(x - 2, top + 2, "╞═╡", NVLINK)
    _label_pcie(canvas, machine, row, pcie)
    if bus and not flipped:
        canvas.put(_TRUNK, y + 5, "═" * ((box + 1) * len(row) - 1), NVLINK)
        canvas.label(y + 5, bus, NVLINK, _TRUNK)
    return y + height


def _draw_box(canvas: Canvas, gpu: Gpu, x: int, y: int, box: int, flipped: bool, bus: bool) -> None:
    inner = box - 2
    free = f"{words.gib(gpu.free)}/{words.gib(gpu.total)}"
    free = f"{free} GiB" if len(free) + 4 <= inner else free
    canvas.put(x, y, "┌" + "─" * inner + "┐", BOX)
    canvas.put(x + 1, y, f"GPU {gpu.index}", "bold")
    for line, (text, style) in enumerate(((short_name(gpu.name, inner), "bold"), (free[:inner], "")), start=1):
        canvas.put(x, y + line, "│" + " " * inner + "│", BOX)
        canvas.put(x + 1, y + line, text, style)
    canvas.put(x, y + 3, "└" + "─" * inner + "┘", BOX)
    canvas.put(x + box - 3, y + 3 if flipped else y, "┬" if flipped else "┴", BOX)
    if bus:
        # Right of "GPU 10".
        canvas.put(x + max(7, box // 2), y if flipped else y + 3, "╨" if flipped else "╥", NVLINK)


def _label_pcie(canvas: Canvas, machine: Machine, row: Sequence[Gpu], y: int) -> None:
    nodes = {gpu.numa_node for gpu in machine.gpus}
    start = 0
    if len(nodes) > 1 and row[0].numa_node is not None:
        canvas.put(1, y, f"NUMA {row[0].numa_node}", "")
        start = 8
    kinds = {(gpu.pcie_generation, gpu.pcie_width) for gpu in row if gpu.pcie_generation}
    if len(kinds) == 1:
        generation, lanes = kinds.pop()
        canvas.label(y, f"PCIe {generation} x{lanes}", PCIE, start)


def _processor_alone(machine: Machine, canvas: Canvas) -> list[Content]:
    cpu, memory = machine.cpu, machine.memory
    native = "multiplies bfloat16 natively" if cpu.native_bfloat16 else "no native bfloat16: computes in float32"
    texts = [
        (short_name(cpu.name, canvas.width - 4), "bold"),
        (f"{cpu.usable_cores} core{'s' if cpu.usable_cores != 1 else ''}, {native}", ""),
        (f"memory {words.memory(memory.available)} free of {words.memory(memory.total)}", ""),
    ]
    inner = min(canvas.width - 2, max(len(text) for text, _ in texts) + 2)
    canvas.put(0, 0, "┌" + "─" * inner + "┐", BOX)
    canvas.put(1, 0, "CPU", "bold")
    for line, (text, style) in enumerate(texts, start=1):
        canvas.put(0, line, "│" + " " * inner + "│", BOX)
        canvas.put(2, line, text[: inner - 2], style)
    canvas.put(0, len(texts) + 1, "└" + "─" * inner + "┘", BOX)
    return canvas.lines()
