"""Which engines stand behind a served model: one, one for prompts and one for answers, copies of it, or a fallback."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec.structs import replace

from app.apart import disaggregated
from app.settings import ServerSettings
from backend.engine_client import EngineClient
from backend.engine_settings import EngineSettings
from backend.errors import SettingError
from backend.hardware.machine import Machine, read_machine
from backend.library.files import ModelFiles
from backend.planner.replicas import replica_count, replicas
from backend.replicated_engine import ReplicatedEngine

# The main engine, when it comes back, has to find about as much memory as it had.
FALLBACK_POOL = 512 << 20

MakeEngine = Callable[[EngineSettings, str], EngineClient]


def main_engine(
    wanted: EngineSettings, settings: ServerSettings, engine: MakeEngine, peers: Sequence[str] = ()
) -> EngineClient:
    """What serves the main model. `engine` makes one of settings and a word for its log, empty for the only one.

    peers: ids of the machines that could have copies.

    Raises SettingError where the machine cannot be divided so.
    """
    if settings.disaggregate and settings.replicas != 1:
        raise SettingError(
            "--replicas is not served with --disaggregate by this version.",
            "Each copy would be two engines.",
            "Leave one of the two away.",
        )
    # Both divide this machine.
    here = replace(wanted, peers="")
    if settings.disaggregate:
        return disaggregated(here, engine)
    if settings.replicas == 1:
        return engine(wanted, "")
    parts = _copies(wanted, read_machine(), settings.replicas, peers)
    if len(parts) == 1:
        return engine(wanted, "")
    return ReplicatedEngine([engine(part, f"copy-{number}") for number, part in enumerate(parts, 1)])


def _copies(wanted: EngineSettings, machine: Machine, count: int | None, peers: Sequence[str]) -> list[EngineSettings]:
    """One copy here, one on each peer, and what is left of the count here again. Raises SettingError."""
    here = replace(wanted, peers="")
    away = peers if count is None else peers[: count - 1]
    there = [replace(wanted, machines=(peer,), pipeline_stages=None, stage_layers=()) for peer in away]
    local = replica_count(here, machine, None if count is None else count - len(there))
    return [*replicas(here, machine, local), *there]


def fallback_settings(main: EngineSettings, files: ModelFiles) -> EngineSettings:
    """The fallback's: on the same kind of device, on this machine, whole, in a small memory of its own."""
    return replace(
        main,
        files=files,
        max_context=None,
        kv_pool=FALLBACK_POOL,
        kv_format="model",
        host_cache=0,
        host_weights=0,
        disk_cache=0,
        cache_dir="",
        tensor_parallel=None,
        pipeline_stages=None,
        stage_layers=(),
        peers="",
    )
