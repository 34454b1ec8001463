"""GpuReport: what the watching program tells each time it has looked at the GPUs. Plain data."""

from __future__ import annotations

from msgspec import Struct

from backend.hardware.gpu import GpuReading


class Xid(Struct, frozen=True):
    """An error that the driver reported of a GPU, by NVIDIA's number."""

    index: int
    code: int


class GpuReport(Struct, frozen=True):
    """The GPUs now, without the links between them, and what was reported since the last time."""

    reading: GpuReading
    xids: tuple[Xid, ...] = ()
