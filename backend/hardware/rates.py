"""HostRates: how fast main memory, the disk of the models and the way to GPUs really are. Plain data."""

from __future__ import annotations

from msgspec import Struct


class CopyRate(Struct, frozen=True):
    """GB/s of large copies between pinned main memory and a GPU, by its uuid; 0 where none was measured."""

    uuid: str
    to_gpu: float = 0.0
    from_gpu: float = 0.0


class HostRates(Struct, frozen=True):
    """What a short probe measured. 0, or nothing, is what it could not.

    Attributes:
        memory: GB/s that copies on all usable cores read and write together (as STREAM counts).
        disk: GB/s of one long read from the file system of the model cache.
        disk_direct: whether that read went around the page cache; else it may be too fast.
        disk_folder: the folder whose file system it was.
        copies: of each GPU.
        busy: whether other programs kept the processor busy meanwhile, so that rates may be too low.
    """

    memory: float = 0.0
    disk: float = 0.0
    disk_direct: bool = False
    disk_folder: str = ""
    copies: tuple[CopyRate, ...] = ()
    busy: bool = False

    def to_gpu(self, uuid: str) -> float:
        """GB/s from pinned main memory; 0 where it was not measured."""
        return next((copy.to_gpu for copy in self.copies if copy.uuid == uuid), 0.0)
