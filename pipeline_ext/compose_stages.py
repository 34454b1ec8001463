"""compose_stages: an engine whose stages are processes here and on peers. No torch: a worker describes the model.

    read           workers begin to import; one describes the model; the Plan is made
    wait for peers only where nothing fits without machines that are known and away
    fetch, load, pack, warm up   on all stages beside each other

Where the Plan has one stage on this machine, the engine is `backend.compose_engine`'s.
"""

from __future__ import annotations

import gc
import secrets
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backend.cache_identity import namespace
from backend.engine import Engine
from backend.engine_settings import EngineSettings
from backend.errors import EngineUnavailableError, OutOfMemoryError, SettingError, ShardwiseError
from backend.hardware.machine import read_machine
from backend.hardware.peer_probe import probed
from backend.kernel_cache import compile_ahead
from backend.library.checks import check
from backend.planner.memory import ELEMENT_BYTES
from backend.planner.plan import Plan
from backend.planner.prepare import PAGE_TOKENS
from backend.scheduler import Scheduler
from backend.workers.start_progress import StartProgress
from backend.workers.worker_messages import Describe, Described, Loading, Refused
from kvcache.cache_manager import CacheManager
from kvcache.layout import CacheLayout, build_layout
from pipeline_ext.cluster import Cluster, SpawnOrder
from pipeline_ext.door import Door
from pipeline_ext.hub_cluster import HubCluster
from pipeline_ext.hub_control import HubClient
from pipeline_ext.messages import Broken, StageLoaded
from pipeline_ext.pipeline import Door as PipelineDoor
from pipeline_ext.pipeline import PipelineMachine
from pipeline_ext.pipeline_executor import PipelineExecutor, StageRefusedError
from pipeline_ext.pipeline_limits import PipelineLimits
from pipeline_ext.plan_loads import PlanLoads
from pipeline_ext.planned import PlannedOver, place_over
from pipeline_ext.process_cluster import ProcessCluster
from pipeline_ext.socket_transport import SocketTransport
from pipeline_ext.transport import Gone, Heard
from quant.kv_format import parse_kv_formats

if TYPE_CHECKING:
    from backend.compose_engine import ComposedEngine, OnProgress
    from backend.planner.model_facts import ModelFacts
    from pipeline_ext.identity import Identity
    from pipeline_ext.tensor_server_process import TensorServerProcess

SECRET_BYTES = 32
DESCRIBE_SECONDS = 120.0
# How long a start waits for machines that are known and away, where nothing fits without them.
RETURN_SECONDS = 120.0
LOOK_SECONDS = 1.0
# So many processes are started before the Plan says how many there have to be.
MOST_AHEAD = 8


@dataclass
class Ground:
    """What an engine of stages stands on; `close` ends all of it."""

    cluster: Cluster
    door: Door
    transport: SocketTransport
    secret: bytes
    local: ProcessCluster
    tensors: TensorServerProcess | None = None

    def close(self) -> None:
        self.transport.close()
        self.cluster.close()
        if self.tensors is not None:
            self.tensors.close()


def may_have_stages(settings: EngineSettings) -> bool:
    """Whether the Plan could have several."""
    return bool(settings.peers) or (settings.pipeline_stages or 1) > 1 or len(settings.stage_layers) > 1


def compose_stages(
    settings: EngineSettings, on_progress: OnProgress, limits: PipelineLimits | None = None
) -> ComposedEngine:
    """Plans over this machine and its peers, and brings all stages up.

    Raises:
        ShardwiseError: as `compose_engine`, and what a peer refuses, by name.
        DeviceLostError: a worker was lost meanwhile.
    """
    from backend.compose_engine import compose_engine

    if not may_have_stages(settings):
        return compose_engine(settings, on_progress)
    on_progress("read", 0, 0)
    check(settings.files)
    local = _local(settings)
    cluster: Cluster = HubCluster(local, HubClient(Path(settings.peers))) if settings.peers else local
    if not _is_worth_it(settings, cluster):
        cluster.close()
        return compose_engine(settings, on_progress)
    ground = open_ground(cluster, local)
    try:
        found = planned_on(settings, ground, on_progress)
        if found.found.plan.stages:
            return compose_on(settings, on_progress, ground, found, limits or PipelineLimits())
    except BaseException:
        ground.close()
        raise
    ground.close()
    return compose_engine(settings, on_progress)


def _local(settings: EngineSettings) -> ProcessCluster:
    local = ProcessCluster(lambda: probed(read_machine()), Path(settings.log_file) if settings.log_file else None)
    here = (settings.pipeline_stages or len(settings.stage_layers) or 1) * (settings.tensor_parallel or 1)
    # Where peers may take stages, only one is needed for sure: it describes the model, and takes one then.
    local.keep_warm(1 if settings.peers else min(here, MOST_AHEAD))
    return local


def _is_worth_it(settings: EngineSettings, cluster: Cluster) -> bool:
    """Whether there is anything to divide a model over."""
    return not settings.peers or settings.pipeline_stages is not None or len(cluster.peers()) > 1


def open_ground(cluster: Cluster, local: ProcessCluster) -> Ground:
    """Opens the engine's door: on this machine, and on the cluster's address where it has one.

    local: starts the processes of this machine, for the cluster too. Raises OSError, ShardwiseError.
    """
    secret = secrets.token_bytes(SECRET_BYTES)
    address, context = cluster.address, None
    if address:
        identity = _identity()
        context = _context(identity)
        local.reach(address, str(identity.folder))
    door = Door(secret, address, context)
    return Ground(cluster, door, SocketTransport(door), secret, local)


def _identity() -> Identity:
    from pipeline_ext.identity import head_identity

    return head_identity()


def _context(identity: Identity) -> ssl.SSLContext:
    from pipeline_ext.identity import server_context

    return server_context(identity)


def planned_on(settings: EngineSettings, ground: Ground, on_progress: OnProgress) -> PlannedOver:
    """The Plan; where nothing fits, machines that are away may come back first. Raises ShardwiseError."""
    facts = _described(settings, ground)
    machine = probed(read_machine())
    deadline = time.monotonic() + RETURN_SECONDS
    while True:
        peers = ground.cluster.peers()
        try:
            return place_over(settings, facts, machine, peers)
        except (OutOfMemoryError, SettingError):
            away = [peer for peer in peers if peer.health in ("silent", "lost")]
            left = deadline - time.monotonic()
            if not away or left <= 0:
                raise
        on_progress("wait for peers", round(RETURN_SECONDS - left), round(RETURN_SECONDS))
        time.sleep(LOOK_SECONDS)


def _described(settings: EngineSettings, ground: Ground) -> ModelFacts:
    """What a process says of the model that becomes a stage's worker then. Raises ShardwiseError."""
    worker, transport = "describe", ground.transport
    ground.cluster.spawn("", SpawnOrder((worker,), ground.door.unix, ground.secret))
    deadline = time.monotonic() + DESCRIBE_SECONDS
    try:
        while time.monotonic() < deadline:
            for event in transport.poll(LOOK_SECONDS):
                match event:
                    case Heard(message=Described(facts=facts)):
                        return facts
                    case Heard(message=Refused() as refused):
                        raise StageRefusedError(refused)
                    case Heard(message=Broken(text=text)) | Gone(cause=text):
                        raise EngineUnavailableError("The model could not be described.", f"Its process says: {text}.")
                    case Heard():
                        pass
                    case _:
                        transport.send(worker, Describe(settings.files))
        raise EngineUnavailableError("The model could not be described.", "Its process did not answer in time.")
    finally:
        # It has all that a stage's worker needs.
        ground.local.give_back(worker)
        transport.drop(worker)


def compose_on(
    settings: EngineSettings, on_progress: OnProgress, ground: Ground, over: PlannedOver, limits: PipelineLimits
) -> ComposedEngine:
    """Brings the stages of this Plan up. Raises as `compose_stages`; the ground is the engine's then."""
    from backend.compose_engine import ComposedEngine

    facts, plan = over.found.facts, over.found.plan
    _check_tiers(settings)
    if any(rank.device == "cpu" for rank in plan.ranks):
        compile_ahead()
    loads = PlanLoads(settings, facts, plan, ground.secret, _offers(settings, ground))
    machine = PipelineMachine(
        loads, ground.transport, ground.cluster, PipelineDoor(ground.door.place, ground.secret), limits
    )
    executor = ClosingExecutor(machine, ground.transport, ground.close)
    _start(executor, machine, on_progress, plan)
    loaded = [crew.loaded[worker] for crew in machine.crews if crew is not None for worker in crew.workers]
    pids = [crew.pids[worker] for crew in machine.crews if crew is not None for worker in crew.workers]
    layout = build_layout(facts.layers, ELEMENT_BYTES[plan.dtype], PAGE_TOKENS, parse_kv_formats(plan.kv_format))
    scheduler = Scheduler(
        CacheManager(
            layout, plan.pages, namespace=_namespace(settings, plan, layout, loaded), host_pages=plan.host_pages
        ),
        max_context=plan.max_context,
        max_sequences=plan.max_sequences,
        step_tokens=plan.step_tokens,
        recompute_lengths=loaded[0].recompute_lengths,
        scaled_past=loaded[0].scaled_past,
    )
    gc.collect()
    gc.freeze()
    return ComposedEngine(
        engine=Engine(scheduler, executor, time.monotonic),
        plan=plan,
        max_context=min(plan.max_context, scheduler.longest_sequence),
        vocabulary=facts.vocabulary,
        weights_bytes=tuple(one.weights_bytes for one in loaded),
        devices=tuple(one.device for one in loaded),
        rank_pids=tuple(pids),
    )


class ClosingExecutor(PipelineExecutor):
    """Closes what the stages stand on with them."""

    def __init__(self, machine: PipelineMachine, transport: SocketTransport, close: Callable[[], None]) -> None:
        super().__init__(machine, transport)
        self._close = close

    def close(self) -> None:
        super().close()
        self._close()


def _start(executor: PipelineExecutor, machine: PipelineMachine, on_progress: OnProgress, plan: Plan) -> None:
    """Waits until all stages stand, and tells of them as of one start."""
    progress = StartProgress(len(plan.ranks))
    firsts = [sum(stage.ranks for stage in plan.stages[:number]) for number in range(len(plan.stages))]

    def tell(stage: int, rank: int, loading: Loading) -> None:
        whole = progress.report(firsts[stage] + rank, loading)
        on_progress(whole.stage, whole.done, whole.total)

    try:
        executor.start(tell)
    except StageRefusedError as error:
        # The machine's own words, and whose they are.
        ended = machine.ended
        raise _named(error, ended.reason if ended is not None else error.what) from None


def _named(error: ShardwiseError, what: str) -> ShardwiseError:
    named = ShardwiseError(f"{what[:1].upper()}{what[1:]}", error.why, error.hint)
    named.code, named.exit_status = error.code, error.exit_status
    return named


def _offers(settings: EngineSettings, ground: Ground) -> Callable[[], bytes]:
    """Starts to serve tensors when a first peer needs to be told of them."""

    def offer() -> bytes:
        from pipeline_ext.tensor_server_process import TensorServerProcess

        if ground.tensors is None:
            ground.tensors = TensorServerProcess(settings.files, ground.cluster.address, _identity(), ground.secret)
        return ground.tensors.offer()

    return offer


def _namespace(settings: EngineSettings, plan: Plan, layout: CacheLayout, loaded: Sequence[StageLoaded]) -> bytes:
    """Of the whole model's pages: also where it is cut and divided, because other cuts keep other pages apart."""
    spans = [stage.span for stage in plan.stages for _ in range(stage.ranks)]
    orders = [
        f"{span.first}-{span.stop} {rank.attention} {rank.mlp} {plan.experts} {order}"
        for span, rank, one in zip(spans, plan.ranks, loaded, strict=True)
        for order in one.kernel_orders
    ]
    return namespace(settings.files, plan, layout, orders)


def _check_tiers(settings: EngineSettings) -> None:
    if settings.disk_cache:
        raise SettingError(
            "--disk-cache is not served over several stages by this version.",
            "The layers are on several machines, each of which would keep records of its own.",
            "Use --disk-cache 0, or --pp 1.",
        )
