"""The memory of a plan's GPUs as text: alike ones together, each term with its amount and, on a terminal, its bar."""

from __future__ import annotations

from collections.abc import Sequence

from app.fit.words import gib
from backend.planner.fit.report import FitPlan, GpuUse

_BAR = 30


def fullest(plan: FitPlan) -> GpuUse:
    """The device with the least left of what may be used."""
    return min(plan.devices, key=lambda device: device.unused)


def taken(device: GpuUse) -> int:
    """What the plan takes of it."""
    return sum(term.bytes for term in device.terms)


def device_lines(plan: FitPlan, bars: bool) -> list[str]:
    """A block for each set of devices that are used alike."""
    lines: list[str] = []
    for group in _alike(plan.devices):
        lines += [_title(group, several_machines=len({each.machine for each in plan.devices}) > 1)]
        lines += _terms(group[0], bars)
    return lines


def _alike(devices: Sequence[GpuUse]) -> list[list[GpuUse]]:
    """Devices of the same kind and stage with the same terms, in the order of the first of each."""
    groups: dict[tuple[object, ...], list[GpuUse]] = {}
    for device in devices:
        groups.setdefault((device.name, device.total, device.usable, device.stage, device.terms), []).append(device)
    return list(groups.values())


def _title(group: Sequence[GpuUse], several_machines: bool) -> str:
    first = group[0]
    if first.gpu is None:
        return f"  {first.name}"
    places: dict[int, list[int]] = {}
    for device in group:
        if device.gpu is not None:
            places.setdefault(device.machine, []).append(device.gpu)
    named = "; ".join(
        f"{f'machine {machine} ' if several_machines else ''}GPU {_ranges(gpus)}" for machine, gpus in places.items()
    )
    return f"  {named}: {first.name}" + (f", stage {first.stage}" if first.stage else "")


def _ranges(numbers: Sequence[int]) -> str:
    """Numbers with runs joined: "0-3, 6"."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _terms(device: GpuUse, bars: bool) -> list[str]:
    rows = [(term.name, term.bytes) for term in device.terms]
    rows += [("unused", device.unused)] if device.unused >= 0 else [("short by", -device.unused)]
    held = device.total - device.usable
    rows += [("not the plan's", held)] if held else []
    lines = [f"    {name:<14} {gib(count):>6} GiB{_bar(count, device.total) if bars else ''}" for name, count in rows]
    return [*lines, f"    {'in all':<14} {gib(device.total):>6} GiB"]


def _bar(count: int, total: int) -> str:
    blocks = min(_BAR, round(_BAR * count / total)) if total else 0
    return "  " + "█" * blocks if blocks else ""
