"""The composition root: puts the server together from its parts, and finds the model it serves."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.types import ASGIApp

from app.commands.progress import shown_progress
from app.engines import fallback_settings, main_engine
from app.keys import KeyStore, check_binding, default_key_store
from app.listener import bind
from app.logs import configure_logging, log_folder
from app.rest.settings import RestSettings
from app.secret import installation_secret
from app.serve import ServerProcess, run_server, say
from app.settings import ServerSettings
from backend.chat_template import ChatRenderer
from backend.engine_settings import EngineSettings
from backend.errors import ModelNotFoundError, SettingError
from backend.hardware.gpu_watch import GpuWatch
from backend.library.files import ModelFiles
from backend.library.resolve import pull, resolve
from backend.supervisor import ENGINE_COMMAND, EngineSupervisor

if TYPE_CHECKING:
    from pipeline_ext.peer import Peer


def explain_plan(model: str, settings: ServerSettings) -> str:
    """The Plan in words, what it is predicted to do, and whether it fits; loads nothing onto a device.

    Raises:
        ShardwiseError: no such model, or one that cannot be served here.
    """
    from app.fit.text import plan_outlook
    from backend.compose_engine import planned_from_files
    from backend.planner.explain import explain
    from backend.planner.fit.served_plan import served_plan

    engine, peers = settings.engine(find_model(model)), joined_peers(settings)
    if not peers and engine.pipeline_stages in (None, 1) and len(engine.stage_layers) < 2:
        planned = planned_from_files(engine)
        predicted = served_plan(planned.facts, planned.machine, engine, planned.plan)
        return f"{explain(planned.plan)}\n\n{plan_outlook(model, predicted)}"
    from pipeline_ext.planned import planned_over

    over = planned_over(engine, peers)
    sites = tuple(one.site for one in over.machines)
    predicted = served_plan(over.found.facts, over.found.machine, engine, over.found.plan, sites)
    return f"{explain(over.found.plan)}\n\n{plan_outlook(model, predicted)}"


def hub_socket(settings: ServerSettings) -> str:
    """Where an engine asks for machines that have joined this one; empty where none has, or none may be used."""
    if settings.peers != "auto":
        return ""
    from pipeline_ext.hub_control import socket_path

    return str(socket_path()) if socket_path().exists() else ""


def joined_peers(settings: ServerSettings) -> tuple[Peer, ...]:
    """The machines that stages could be put on at this moment."""
    if not hub_socket(settings):
        return ()
    from pipeline_ext.hub_control import HubClient, NoHubError

    try:
        return tuple(peer for peer in HubClient(seconds=5.0).news().peers if peer.id and peer.health == "alive")
    except NoHubError:
        return ()


def serve_model(model: str, settings: ServerSettings) -> int:
    """Serves a model until a signal: the exit status.

    Raises:
        ShardwiseError: before serving: the port is taken, there is no such model, the engine cannot start.
    """
    # First of all: whoever waits for a download should not learn after it that the port is taken.
    listener = bind(settings.host, settings.port)
    with listener:
        port = listener.getsockname()[1]
        folder = log_folder()
        # A container without a writable home is no reason not to serve: then standard error has it all.
        configure_logging(folder and folder / f"server-{port}.jsonl")
        keys = default_key_store()
        check_binding(listener.getsockname()[0], keys)
        files = find_model(model)
        fallback = find_fallback(model, settings.fallback)
        engine_log = folder and folder / f"engine-{port}.log"
        secret = installation_secret()
        return run_server(
            lambda: compose_server(files, settings, listener, keys, engine_log, cache_secret=secret, fallback=fallback)
        )


def compose_server(
    files: ModelFiles,
    settings: ServerSettings,
    listener: socket.socket,
    keys: KeyStore,
    engine_log: Path | None,
    engine_command: Sequence[str] | None = None,
    cache_secret: bytes = b"",
    fallback: ModelFiles | None = None,
) -> ServerProcess:
    """The server of one model, not running yet. `cache_secret` signs pages on disk and separates those of API keys.

    `fallback` answers while the model is away.

    Raises:
        KeyNeededError: other machines could reach it, and there is no key.
        SettingError: the machine cannot be divided as the settings ask.
    """
    rest = RestSettings(
        loopback=check_binding(listener.getsockname()[0], keys),
        require_key=settings.require_key,
        allowed_hosts=settings.allowed_hosts,
        allowed_origins=settings.allowed_origins,
    )

    def supervised(engine: EngineSettings, name: str = "") -> EngineSupervisor:
        log = engine_log.with_stem(f"{engine_log.stem}-{name}") if engine_log and name else engine_log
        return EngineSupervisor(engine, command=engine_command or engine_program(engine), log_file=log)

    wanted = settings.engine(files, cache_secret, hub_socket(settings))
    engine = main_engine(wanted, settings, supervised)
    standby = {} if fallback is None else {fallback.name: supervised(fallback_settings(wanted, fallback), "fallback")}
    renderer, watch = ChatRenderer(), GpuWatch()

    def build() -> ASGIApp:
        # FastAPI and the tokenizer take a second to import: the engine's start does not wait for them.
        from app.rest.served import served_engine
        from app.rest.server import create_app

        served = {files.name: served_engine(engine, files, renderer)}
        if fallback is not None:
            served[fallback.name] = served_engine(standby[fallback.name], fallback, renderer)
        return create_app(served, keys, rest, cache_secret, lambda: watch.reading, fallback=fallback and fallback.name)

    return ServerProcess(
        {files.name: engine},
        build,
        listener,
        settings.drain_timeout,
        say,
        prepare=partial(_all, renderer.warm_up, watch.start),
        close=partial(_all, renderer.close, watch.close),
        standby=standby,
    )


def engine_program(engine: EngineSettings) -> Sequence[str]:
    """What an engine process runs: one that knows of stages only where there may be several."""
    if not engine.peers and (engine.pipeline_stages or 1) == 1 and len(engine.stage_layers) < 2:
        return ENGINE_COMMAND
    from pipeline_ext.engine_process import STAGED_ENGINE_COMMAND

    return STAGED_ENGINE_COMMAND


async def _all(*calls: Callable[[], Awaitable[None]]) -> None:
    """Makes these calls beside each other."""
    await asyncio.gather(*(call() for call in calls))


def find_fallback(model: str, name: str | None) -> ModelFiles | None:
    """The fallback's files, if there is to be one. Raises ShardwiseError as `find_model`, and for the model itself."""
    if name is None:
        return None
    if name == model:
        raise SettingError(
            "--fallback names the model itself", f"Both are {name}.", "Name a smaller one, such as starter."
        )
    return find_model(name)


def find_model(name: str) -> ModelFiles:
    """The model's files, downloaded first where they are not here, with progress where the user looks.

    Raises:
        ShardwiseError: no such model, no access, or a download that failed.
    """
    try:
        return resolve(name)
    except ModelNotFoundError as error:
        missing = error
    try:
        with shown_progress(name, as_json=False) as on_progress:
            return pull(name, on_progress)
    except ModelNotFoundError:
        # A folder or a file that is not there: what resolving said is the whole truth.
        raise missing from None
