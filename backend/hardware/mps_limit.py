"""What CUDA_MPS_PINNED_DEVICE_MEM_LIMIT leaves of each GPU to a client of the Multi-Process Service. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from backend.errors import SettingError
from backend.hardware.gpu import Gpu
from backend.sizes import parse_size


def limited_by_mps(gpus: Sequence[Gpu], limit: str) -> tuple[Gpu, ...]:
    """The GPUs with no more free than the limit allows ("0=1G,1=512MB", by CUDA's numbers). What is odd counts as none.

    It holds for GPUs with the service only; limits that a control daemon sets by itself are not told to anybody.
    """
    limits = _limits(limit)
    return tuple(
        replace(gpu, free=min(gpu.free, limits[number])) if gpu.mps and number in limits else gpu
        for number, gpu in enumerate(gpus)
    )


def _limits(text: str) -> dict[int, int]:
    limits: dict[int, int] = {}
    for part in text.split(","):
        number, _, size = part.partition("=")
        if number.strip().isdigit():
            try:
                limits[int(number)] = parse_size(size)
            except SettingError:
                continue
    return limits
