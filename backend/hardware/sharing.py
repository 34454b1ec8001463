"""Sharing: by what means others use a GPU too, what that costs, and how to have it alone. Pure.

A GPU that nobody may use, and one that MIG divides, are left out (`health`); the others here may be planned for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from msgspec import Struct

from backend.hardware.gpu import Gpu, GpuHolder

SharingKind = Literal["exclusive", "mps", "time-slicing", "held", "hidden", "virtual", "instance"]

_GIB = 1 << 30
# Below this a desktop, or what a driver keeps for itself (some 0.5 GiB of an H100), is nothing to speak of.
_LITTLE, _LITTLE_SHARE = _GIB, 1 / 32
# With less than this share free, a model that the GPU would hold is likely not to fit.
_FEW = 0.75


class Sharing(Struct, frozen=True):
    """One means.

    Attributes:
        kind: which.
        harm: whether serving is worse for it than it need be, or impossible.
        what: a sentence.
        fix: what to do; empty where nothing needs doing.
    """

    kind: SharingKind
    harm: bool
    what: str
    fix: str = ""


def sharing_of(gpu: Gpu, pod: bool = False) -> tuple[Sharing, ...]:
    """All means by which a GPU is shared. `pod`: whether we run in a Kubernetes pod, which sees none of the others'."""
    return (*_modes(gpu), *_mps(gpu), *_time(gpu), *_held(gpu), *_hidden(gpu, pod))


def holders_words(holders: Sequence[GpuHolder]) -> str:
    """Such as "blender (77, 20 GiB), a process (78)"."""
    return ", ".join(
        f"{holder.name or 'a process'} ({holder.pid}"
        + (f", {_size(holder.bytes)})" if holder.bytes is not None else ")")
        for holder in holders
    )


def held_bytes(gpu: Gpu) -> int:
    """What the processes hold of it that are named: by what they tell, or all that is not free if one does not."""
    if any(holder.bytes is None for holder in gpu.holders):
        return gpu.total - gpu.free
    return sum(holder.bytes or 0 for holder in gpu.holders)


def is_little(gpu: Gpu, count: int) -> bool:
    """Whether so many bytes are not worth a word."""
    return count <= max(_LITTLE, gpu.total * _LITTLE_SHARE)


def _modes(gpu: Gpu) -> Iterator[Sharing]:
    name = f"GPU {gpu.index} ({gpu.name})"
    if gpu.parent:
        what = f"{name} is a part that MIG has set aside; others use the rest, and its memory is its own."
        yield Sharing("instance", False, what)
    if gpu.virtual:
        what = f"{name} is a part of a GPU that a hypervisor shares out (vGPU): others may compute when we would."
        yield Sharing("virtual", False, what, "Have the hypervisor pass the whole GPU through, for all of its speed.")
    if gpu.mode == "exclusive" and not gpu.mps:
        others = [holder for holder in gpu.holders if holder.kind == "compute"]
        default = f"sudo nvidia-smi -i {gpu.index} -c DEFAULT"
        if others:
            what = f"{name} lets one program compute at a time (exclusive mode), and that is {holders_words(others)}."
            yield Sharing("exclusive", True, what, f"End it, or let several compute: {default}")
        else:
            what = f"{name} lets one program compute at a time (exclusive mode); a server would be that one."
            yield Sharing("exclusive", False, what, f"To let others compute beside it: {default}")


def _mps(gpu: Gpu) -> Iterator[Sharing]:
    if not gpu.mps:
        return
    clients = [holder for holder in gpu.holders if holder.kind == "mps" and not _is_server(holder)]
    beside = f", at present {holders_words(clients)}" if clients else ""
    yield Sharing(
        "mps",
        bool(clients),
        f"GPU {gpu.index} ({gpu.name}) is shared through NVIDIA's Multi-Process Service{beside}: its programs compute "
        "at once, a limit of memory or of processors may hold for each, and a fault of one ends all.",
        "To have it alone, stop the service: echo quit | nvidia-cuda-mps-control",
    )


def _is_server(holder: GpuHolder) -> bool:
    return holder.name.startswith("nvidia-cuda-mps")


def _time(gpu: Gpu) -> Iterator[Sharing]:
    others = [holder for holder in gpu.holders if holder.kind == "compute"]
    if not others or gpu.mps or gpu.mode == "exclusive":
        return
    one = len(others) == 1
    yield Sharing(
        "time-slicing",
        True,
        f"{holders_words(others)} {'computes' if one else 'compute'} on GPU {gpu.index} ({gpu.name}) too: programs on "
        "one GPU take turns (time-slicing), so that each is slower while another computes.",
        f"End {'it' if one else 'what is not needed'}, or choose other GPUs: CUDA_VISIBLE_DEVICES",
    )


def _held(gpu: Gpu) -> Iterator[Sharing]:
    held = held_bytes(gpu)
    if not gpu.holders or is_little(gpu, held):
        return
    yield Sharing(
        "held",
        gpu.free < _FEW * gpu.total,
        f"{_size(held)} of GPU {gpu.index} ({gpu.name}) are held by {holders_words(gpu.holders)}.",
        "End what is not needed; a plan takes only what is free.",
    )


def _hidden(gpu: Gpu, pod: bool) -> Iterator[Sharing]:
    if is_little(gpu, gpu.hidden):
        return
    whose = (
        "programs of other pods, most likely, with which Kubernetes lets this one take turns (time-slicing)"
        if pod
        else "programs that cannot be seen from here: those of other containers or users"
    )
    fix = (
        "Ask for a GPU of its own: nvidia.com/gpu instead of nvidia.com/gpu.shared, on a node that does not share."
        if pod
        else "Look for them on the host: nvidia-smi"
    )
    yield Sharing("hidden", True, f"{_size(gpu.hidden)} of GPU {gpu.index} ({gpu.name}) are held by {whose}.", fix)


def _size(count: int) -> str:
    return f"{count / _GIB:.3g} GiB" if count >= _GIB else f"{count / (1 << 20):.0f} MiB"
