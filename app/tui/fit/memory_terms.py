"""The terms of a device's memory as cells of a bar: which glyph and colour, and how many cells each. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from backend.planner.fit.report import GpuUse

# By term: glyph, colour, name for people. Glyphs alone tell them apart.
TERMS: dict[str, tuple[str, str, str]] = {
    "weights": ("█", "$primary", "weights"),
    "kv": ("▓", "$accent", "KV"),
    "activations": ("▒", "$success", "activations"),
    "graphs": ("▚", "$warning", "graphs"),
    "communication": ("▞", "$secondary", "communication"),
    "libraries": ("░", "$foreground", "libraries"),
    "context": ("░", "$foreground", "libraries"),
    "streaming": ("≡", "$secondary", "streaming buffers"),
    "host cache": ("≈", "$accent", "host cache"),
    "free": ("·", "$text-muted", "free"),
    "held": ("/", "$text-muted", "not the engine's"),
}
_OTHER = ("▪", "$foreground", "")


def look(name: str) -> tuple[str, str, str]:
    """A term's glyph, colour and name; terms that nobody told us of have a look of their own."""
    glyph, colour, words = TERMS.get(name, _OTHER)
    return glyph, colour, words or name


def parts(device: GpuUse) -> list[tuple[str, int]]:
    """The terms with what is free and what is not the engine's, in bytes; they sum to the device, or to more."""
    found = [(term.name, term.bytes) for term in ordered(device.terms, key=lambda term: term.name)]
    free, held = max(0, device.unused), device.total - device.usable
    return [*found, *([("free", free)] if free else []), *([("held", held)] if held > 0 else [])]


def ordered(terms: Iterable, key) -> list:  # type: ignore[no-untyped-def]
    """In the order of the table; unknown ones last."""
    names = list(TERMS)
    return sorted(terms, key=lambda term: names.index(key(term)) if key(term) in names else len(names))


def cells(amounts: Sequence[int], width: int) -> list[int]:
    """So many cells of `width` for each amount: by share, one at least for what is not 0, summing to `width`."""
    total = sum(amounts)
    if not total:
        return [0] * len(amounts)
    counts = [max(1 if amount else 0, round(width * amount / total)) for amount in amounts]
    while sum(counts) > width and max(counts) > 1:
        counts[counts.index(max(counts))] -= 1
    while sum(counts) < width:
        counts[max(range(len(counts)), key=lambda place: width * amounts[place] / total - counts[place])] += 1
    return counts


def alike(devices: Sequence[GpuUse]) -> list[list[GpuUse]]:
    """Devices with the same memory and the same terms, in the order of the first of each."""
    groups: dict[tuple[object, ...], list[GpuUse]] = {}
    for device in devices:
        groups.setdefault((device.name, device.total, device.usable, device.terms), []).append(device)
    return list(groups.values())
