"""replicas: one engine's settings as those of several of the same model, each on devices of its own. Pure."""

from __future__ import annotations

from msgspec.structs import replace

from backend.engine_settings import EngineSettings
from backend.errors import SettingError
from backend.hardware.machine import Machine
from backend.planner.groups import best_group

# Of the free main memory, for the pages of all replicas on a processor: each alone would take a quarter.
_CPU_POOLS_SHARE = 0.5
_HOST_CACHES_SHARE = 0.1


def replica_count(settings: EngineSettings, machine: Machine, wanted: int | None) -> int:
    """How many there will be: as wanted; auto is as many as there are groups of --tp GPUs, else one."""
    if wanted is not None:
        return wanted
    if settings.device == "cpu" or not machine.gpus or settings.tensor_parallel is None:
        return 1
    return max(1, len(machine.gpus) // settings.tensor_parallel)


def replicas(settings: EngineSettings, machine: Machine, count: int) -> tuple[EngineSettings, ...]:
    """Divides what `settings` may use between `count` engines.

    Raises SettingError where one of them would have no device.
    """
    if count == 1:
        return (settings,)
    shared = _divided_memory(settings, count)
    if settings.device == "cpu" or not machine.gpus:
        return _on_processor(shared, machine, count)
    host = settings.host_cache
    if host is None:
        shared = replace(shared, host_cache=int(machine.memory.available * _HOST_CACHES_SHARE) // count)
    return _on_gpus(shared, machine, count)


def _divided_memory(settings: EngineSettings, count: int) -> EngineSettings:
    """Budgets that a person gave are for all of them together."""

    def part(size: int | None) -> int | None:
        return size // count if size else size

    return replace(
        settings,
        kv_pool=part(settings.kv_pool),
        host_cache=part(settings.host_cache),
        host_weights=part(settings.host_weights),
    )


def _on_processor(shared: EngineSettings, machine: Machine, count: int) -> tuple[EngineSettings, ...]:
    threads = shared.threads or machine.cpu.usable_cores
    if threads < count:
        raise SettingError(
            f"--replicas {count} needs {count} processor threads.", f"There are {threads}.", "Use fewer --replicas."
        )
    if shared.kv_pool is None and count > 2:
        shared = replace(shared, kv_pool=int(machine.memory.available * _CPU_POOLS_SHARE) // count)
    first = threads % count
    return tuple(replace(shared, threads=threads // count + (number < first)) for number in range(count))


def _on_gpus(shared: EngineSettings, machine: Machine, count: int) -> tuple[EngineSettings, ...]:
    ranks = shared.tensor_parallel or len(machine.gpus) // count
    if ranks * count > len(machine.gpus) or not ranks:
        raise SettingError(
            f"--replicas {count} needs {count * max(1, ranks)} GPUs here.",
            f"Each has GPUs of its own, {max(1, ranks)} of them; there are {len(machine.gpus)}.",
            "Use fewer --replicas, or a smaller --tp.",
        )
    left, found = list(range(len(machine.gpus))), []
    for _ in range(count):
        group = best_group(machine, left, ranks)
        left = [gpu for gpu in left if gpu not in group]
        uuids = tuple(machine.gpus[number].uuid for number in group)
        found.append(replace(shared, gpus=uuids, tensor_parallel=ranks))
    return tuple(found)
