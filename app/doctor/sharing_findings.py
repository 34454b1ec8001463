"""Findings about GPUs that others use too, or a server of ours. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from msgspec.structs import replace

from app.doctor.finding import Finding
from backend.hardware.gpu import Gpu
from backend.hardware.machine import Machine
from backend.hardware.sharing import holders_words, sharing_of


def sharing_findings(machine: Machine, own: Collection[int] = ()) -> Iterator[Finding]:
    """Each means by which a GPU is shared, and how to have it alone. `own`: processes of this user's servers."""
    for gpu in machine.gpus:
        ours = tuple(holder for holder in gpu.holders if holder.pid in own)
        if ours:
            what = f"GPU {gpu.index} ({gpu.name}) serves: shardwise runs on it, {holders_words(ours)}."
            yield Finding("sharing", "note", what, "To free it: shardwise stop")
        for sharing in sharing_of(_without(gpu, own), machine.pod):
            yield Finding("sharing", "warning" if sharing.harm else "note", sharing.what, sharing.fix)


def _without(gpu: Gpu, own: Collection[int]) -> Gpu:
    """The GPU as it would be without these processes."""
    others = tuple(holder for holder in gpu.holders if holder.pid not in own)
    freed = sum(holder.bytes or 0 for holder in gpu.holders if holder.pid in own)
    return replace(gpu, holders=others, free=min(gpu.total, gpu.free + freed))
