"""Tiers below the device: how many pages host memory and the disk get, and why. Pure, no torch."""

from __future__ import annotations

from backend.engine_settings import EngineSettings
from backend.errors import OutOfMemoryError, SettingError
from backend.hardware.machine import Machine
from backend.planner.target import Target
from backend.planner.units import human_bytes

# Of the free main memory, for pages that a GPU has no room for: the machine is also somebody's desktop.
_HOST_SHARE = 0.1
# Of the free main memory, at most, whatever is asked: as much as `target` takes of a device.
_USABLE_SHARE = 0.9


def host_room(free: int, taken: int) -> int:
    """What of `free` bytes of main memory may be used beside `taken` ones; may be below 0."""
    return int(free * _USABLE_SHARE) - taken


def host_pages(
    settings: EngineSettings, machine: Machine, target: Target, page_bytes: int, taken: int = 0
) -> tuple[int, str]:
    """Pages of the host tier, and why. `taken`: bytes of main memory that weights take.

    "auto" gives a processor none: its pages lie in main memory anyway, where a larger pool serves better.

    Raises SettingError for a host cache that holds no page.
    """
    asked = settings.host_cache
    if asked is None:
        free = machine.memory.available - taken
        count = int(free * _HOST_SHARE) // page_bytes if target.cuda else 0
        size = human_bytes(count * page_bytes)
        return count, f"The host cache takes {size}, a tenth of the free main memory." if count else ""
    if asked == 0:
        return 0, ""
    if asked < page_bytes:
        raise SettingError(
            f"--host-cache {asked} is too small.",
            f"A page of this model takes {page_bytes} bytes ({human_bytes(page_bytes)}).",
            f"Use --host-cache {-(-page_bytes >> 20)}MiB or more, or 0 for none.",
        )
    return asked // page_bytes, f"The host cache has {human_bytes(asked)}, as --host-cache asks."


def check_host_memory(size: int, free: int, taken: int) -> None:
    """Refuses a host cache of `size` bytes that does not fit beside `taken` bytes into 90% of `free` ones.

    Raises OutOfMemoryError.
    """
    room = host_room(free, taken)
    if size <= room:
        return
    raise OutOfMemoryError(
        f"The host cache does not fit main memory: it needs {human_bytes(size)}.",
        f"{human_bytes(free)} are free, of which the model may take {human_bytes(taken)}; "
        f"{human_bytes(max(0, room))} can be used.",
        f"Two ways out: --host-cache {max(0, room) >> 20}MiB or less, or free memory there.",
    )


def disk(settings: EngineSettings, page_bytes: int) -> tuple[int, str, str]:
    """Bytes and folder of the disk tier, and why; 0 and empty where none was asked for.

    Raises SettingError for a budget that holds no page, or without a folder.
    """
    asked = settings.disk_cache
    if asked == 0:
        return 0, "", ""
    if asked < page_bytes:
        raise SettingError(
            f"--disk-cache {asked} is too small.",
            f"A page of this model takes {page_bytes} bytes ({human_bytes(page_bytes)}).",
            f"Use --disk-cache {-(-page_bytes >> 20)}MiB or more, or 0 for none.",
        )
    if not settings.cache_dir:
        raise SettingError(
            f"--disk-cache {human_bytes(asked)} has no folder.",
            "Pages on disk lie in a folder of their own.",
            "Name one with --cache-dir.",
        )
    if settings.role != "whole":
        way = (
            "Prompts' pages are handed over through" if settings.role == "prefill" else "Pages of prompts come through"
        )
        return asked, settings.cache_dir, f"{way} {settings.cache_dir}, up to {human_bytes(asked)} at a time."
    reason = f"Pages are kept on disk up to {human_bytes(asked)}, as --disk-cache asks."
    return asked, settings.cache_dir, reason
