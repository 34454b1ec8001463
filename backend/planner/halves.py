"""halves: one engine's settings as those of two, one for prompts and one for answers, over a machine's devices. Pure.

Both get like parts, because a page must mean the same in both: as many ranks, the same formats.
"""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from backend.engine_settings import EngineSettings
from backend.errors import SettingError
from backend.hardware.machine import Machine
from backend.planner.groups import best_group

# For pages on their way from one engine to the other: enough for some long prompts at a time.
HAND_OVER_SHARE = 0.05
LEAST_BYTES, MOST_BYTES = 64 << 20, 4 << 30


@dataclass(frozen=True, slots=True)
class Halves:
    """Settings of the engine for prompts, and of the one that goes on."""

    prefill: EngineSettings
    decode: EngineSettings


def halves(settings: EngineSettings, machine: Machine, folder: str, free: int) -> Halves:
    """Divides what `settings` may use.

    folder: a new one in memory, by which pages pass, with `free` bytes of room.

    Raises SettingError where one engine would have nothing, and for what two engines cannot do.
    """
    _check(settings, machine)
    room = min(max(int(machine.memory.available * HAND_OVER_SHARE), LEAST_BYTES), MOST_BYTES, free)
    shared = replace(settings, disk_cache=room, cache_dir=folder)
    if settings.device == "cpu" or not machine.gpus:
        threads = settings.threads or machine.cpu.usable_cores
        # Prompts use all that they get; an answer's tokens wait for memory more than for threads.
        first = max(1, threads // 2)
        return _roles(replace(shared, threads=first), replace(shared, threads=max(1, threads - first)))
    ranks = settings.tensor_parallel or len(machine.gpus) // 2
    everywhere = list(range(len(machine.gpus)))
    first = best_group(machine, everywhere, ranks)
    second = best_group(machine, [gpu for gpu in everywhere if gpu not in first], ranks)
    return _roles(*(_on(shared, machine, group) for group in (second, first)))


def _on(settings: EngineSettings, machine: Machine, group: tuple[int, ...]) -> EngineSettings:
    uuids = tuple(machine.gpus[number].uuid for number in group)
    return replace(settings, gpus=uuids, tensor_parallel=len(group))


def _roles(prefill: EngineSettings, decode: EngineSettings) -> Halves:
    return Halves(replace(prefill, role="prefill"), replace(decode, role="decode"))


def _check(settings: EngineSettings, machine: Machine) -> None:
    if settings.disk_cache:
        raise SettingError(
            "--disk-cache is not served with --disaggregate by this version.",
            "The way by which pages are handed over is the disk tier's.",
            "Leave one of the two away.",
        )
    if (settings.pipeline_stages or 1) > 1:
        raise SettingError(
            "--pp is not served with --disaggregate by this version.",
            "Pages are handed over between the ranks of one machine.",
            "Leave one of the two away.",
        )
    gpus = 0 if settings.device == "cpu" else len(machine.gpus)
    needed = 2 * (settings.tensor_parallel or 1)
    if gpus and gpus < needed:
        raise SettingError(
            f"--disaggregate needs {needed} GPUs here.",
            f"One engine computes prompts and another answers, each with {needed // 2}; there are {gpus}.",
            "Leave --disaggregate away, or use a smaller --tp.",
        )
