"""The memory of a plan's devices as text: a line for those that are alike, and on a terminal a bar for each line."""

from __future__ import annotations

from collections.abc import Sequence

from app.fit.columns import columns
from app.fit.words import gib, term_names, term_title
from backend.planner.fit.report import FitPlan, GpuUse

_BAR = 56
_FULL, _KV, _OTHER, _FREE = "█▓▒·"


def fullest(plan: FitPlan) -> GpuUse:
    """The device with the least left of what may be used."""
    return min(plan.devices, key=lambda device: device.unused)


def taken(device: GpuUse) -> int:
    """What the plan takes of it."""
    return sum(term.bytes for term in device.terms)


def device_lines(plan: FitPlan, bars: bool, width: int) -> list[str]:
    """What each device is, and a table of what is in it, GiB."""
    groups = _alike(plan.devices)
    names = term_names(term.name for group in groups for term in group[0].terms)
    several = len({device.machine for device in plan.devices}) > 1
    titles = [_title(group, several) for group in groups]
    head = ("GPU", "stage", *map(term_title, names), "unused", "kept", "of")
    rows = [_row(title, group[0], names) for title, group in zip(titles, groups, strict=True)]
    align = "<" + ">" * (len(head) - 1)
    kinds = dict.fromkeys(device.name for device in plan.devices)
    lines = [*columns(head, rows, align, width - 2), "GiB; kept: set aside, for fragments and what others take"]
    lines += ["", *_bars(titles, groups)] if bars else []
    return [f"  {line}".rstrip() for line in [*_kinds(plan, list(kinds)), *lines]]


def _alike(devices: Sequence[GpuUse]) -> list[list[GpuUse]]:
    """Devices of the same kind and stage that read the same, in the order of the first of each."""
    groups: dict[tuple[object, ...], list[GpuUse]] = {}
    for device in devices:
        shown = tuple((term.name, gib(term.bytes)) for term in device.terms)
        key = (device.name, gib(device.total), gib(device.usable), device.stage, shown)
        groups.setdefault(key, []).append(device)
    return list(groups.values())


def _kinds(plan: FitPlan, names: Sequence[str]) -> list[str]:
    """Which kinds of devices there are; where they are several, which is which."""
    if len(names) == 1:
        return [names[0]]
    return [
        f"GPU {_place([device for device in plan.devices if device.name == name], False)}: {name}" for name in names
    ]


def _title(group: Sequence[GpuUse], several_machines: bool) -> str:
    return "cpu" if group[0].gpu is None else _place(group, several_machines)


def _place(group: Sequence[GpuUse], several_machines: bool) -> str:
    """Numbers of GPUs: "0-3"; with their machines before a colon where there are several: "0:0-3 1:0-3"."""
    places: dict[int, list[int]] = {}
    for device in group:
        if device.gpu is not None:
            places.setdefault(device.machine, []).append(device.gpu)
    return " ".join(
        f"{machine}:{_ranges(gpus)}" if several_machines else _ranges(gpus) for machine, gpus in places.items()
    )


def _ranges(numbers: Sequence[int]) -> str:
    """Numbers with runs joined: "0-3,6"."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _row(title: str, device: GpuUse, names: Sequence[str]) -> tuple[str, ...]:
    terms = {term.name: term.bytes for term in device.terms}
    amounts = [*(terms.get(name, 0) for name in names), device.unused, device.total - device.usable, device.total]
    return (title, str(device.stage), *map(gib, amounts))


def _bars(titles: Sequence[str], groups: Sequence[Sequence[GpuUse]]) -> list[str]:
    wide = max(map(len, titles))
    bars = [f"{title:<{wide}}  {_bar(group[0])}" for title, group in zip(titles, groups, strict=True)]
    return [*bars, f"{'':<{wide}}  {_FULL} weights  {_KV} kv  {_OTHER} other terms  {_FREE} unused"]


def _bar(device: GpuUse) -> str:
    """Where the device's memory goes, as far as it has any: what is short is not drawn."""
    terms = {term.name: term.bytes for term in device.terms}
    others = taken(device) - terms.get("weights", 0) - terms.get("kv", 0)
    parts = ((_FULL, terms.get("weights", 0)), (_KV, terms.get("kv", 0)), (_OTHER, others), (_FREE, device.unused))
    drawn, filled = "", 0
    for mark, count in parts:
        filled += max(0, count)
        drawn += mark * (round(_BAR * filled / max(1, device.total)) - len(drawn))
    return drawn[:_BAR]
