"""Which engines stand behind a served model: one, one for prompts and one for answers, copies of it, or a fallback."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from app.apart import disaggregated
from app.settings import ServerSettings
from backend.engine_client import EngineClient
from backend.engine_settings import EngineSettings
from backend.errors import SettingError
from backend.hardware.machine import read_machine
from backend.library.files import ModelFiles
from backend.planner.replicas import replica_count, replicas
from backend.replicated_engine import ReplicatedEngine

# The main engine, when it comes back, has to find about as much memory as it had.
FALLBACK_POOL = 512 << 20

MakeEngine = Callable[[EngineSettings, str], EngineClient]


def main_engine(wanted: EngineSettings, settings: ServerSettings, engine: MakeEngine) -> EngineClient:
    """What serves the main model. `engine` makes one of settings and a word for its log, empty for the only one.

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
    machine = read_machine()
    parts = replicas(here, machine, replica_count(here, machine, settings.replicas))
    if len(parts) == 1:
        return engine(wanted, "")
    return ReplicatedEngine([engine(part, f"copy-{number}") for number, part in enumerate(parts, 1)])


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
