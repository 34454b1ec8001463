"""MemoryBars: a plan's memory on each device as a bar of terms, with a legend and figures. Shapes tell terms apart."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content

from app.text_safety import clean_line
from app.tui.fit import words
from app.tui.fit.machine_picture import short_name
from app.tui.fit.memory_terms import alike, cells, look, parts
from app.tui.widgets.drawn import Drawn
from backend.planner.fit.report import FitPlan, GpuUse

_LEAST_BAR = 12
_MOST_SINGLE = 8


class MemoryBars(Drawn):
    """One line a device; those that are alike share a line where that is wanted, or where they are many."""

    def __init__(self, plan: FitPlan | None = None, *, together: bool = False, id: str | None = None) -> None:
        super().__init__(id=id)
        self._plan = plan
        self._together = together

    def show(self, plan: FitPlan | None, together: bool) -> None:
        """`together`: whether devices that are alike share a line."""
        self._plan, self._together = plan, together
        self.redraw()

    def lines(self, width: int) -> list[Content]:
        if self._plan is None or width < _LEAST_BAR:
            return []
        return memory_lines(self._plan, width, self._together)


def memory_lines(plan: FitPlan, width: int, together: bool) -> list[Content]:
    """A bar for each device or group, each kind of device with its legend."""
    groups = alike(plan.devices)
    several_machines = len({device.machine for device in plan.devices}) > 1
    rows = groups if together or len(plan.devices) > _MOST_SINGLE else [[device] for device in plan.devices]
    names = [_name(row, several_machines) for row in rows]
    label = min(22, max(len(name) for name in names))
    lines: list[Content] = []
    for name, row in zip(names, rows, strict=True):
        lines.append(_bar(name[:label], row[0], label, width))
    legend = groups[:2] if together else groups[:4]
    for group in legend:
        lead = f"{_name(group, several_machines)}: " if len(groups) > 1 else ""
        lines += _legend(group[0], lead, width)
    return lines


def _name(group: Sequence[GpuUse], several_machines: bool) -> str:
    first = group[0]
    if first.gpu is None:
        return short_name(first.name, 20) if first.name else "CPU"
    numbers = [device.gpu for device in group if device.gpu is not None]
    if several_machines:
        machines = sorted({device.machine + 1 for device in group})
        where = f"{machines[0]}" if len(machines) == 1 else f"{machines[0]}-{machines[-1]}"
        return f"node {where} GPU {min(numbers)}" + (f"-{max(numbers)}" if len(set(numbers)) > 1 else "")
    return f"GPU {runs(numbers)} {short_name(first.name, 10)}"


def runs(numbers: Sequence[int]) -> str:
    """`0-3, 6`."""
    found: list[list[int]] = []
    for number in sorted(set(numbers)):
        if found and found[-1][-1] == number - 1:
            found[-1].append(number)
        else:
            found.append([number])
    return ", ".join(f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in found)


def _bar(name: str, device: GpuUse, label: int, width: int) -> Content:
    """The name, the bar over all of the device, and how much of it is taken."""
    taken = sum(term.bytes for term in device.terms)
    figure = (
        f"{words.gib(taken)}/{words.gib(device.total)} GiB"
        if device.unused >= 0
        else f"{words.gib(-device.unused)} GiB short"
    )
    room = max(_LEAST_BAR, width - label - len(figure) - 3)
    found = parts(device)
    segments = [
        (look(part)[0] * count, look(part)[1])
        for (part, _), count in zip(found, cells([amount for _, amount in found], room), strict=True)
    ]
    return Content.assemble(
        (f"{clean_line(name, label):<{label}} ", ""),
        *segments,
        (f" {figure}", "bold $text-error" if device.unused < 0 else ""),
    )


def _legend(device: GpuUse, lead: str, width: int) -> list[Content]:
    """Glyph, name and figure of each term, in as many lines as they need."""
    items = []
    for name, amount in parts(device):
        glyph, colour, text = look(name)
        items.append(Content.assemble((glyph * 2, colour), f" {text} {words.memory(amount)}"))
    if device.unused < 0:
        items.append(Content.styled(f"short by {words.memory(-device.unused)}", "bold $text-error"))
    lines, line = [], Content.styled(lead, "bold")
    for item in items:
        if len(line) and len(line) + len(item) + 2 > width and len(line) > len(lead):
            lines.append(line)
            line = Content("")
        line = Content.assemble(line, "  " if len(line) > len(lead) else "", item) if len(line) else item
    return [*lines, line]
