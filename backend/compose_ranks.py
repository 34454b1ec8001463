"""compose_ranks: an engine whose ranks are processes of their own. It loads no torch: a worker describes the model."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from backend.cache_identity import namespace
from backend.compose_tiers import hand_over_index
from backend.engine import Engine
from backend.engine_environment import worker_environment
from backend.engine_settings import EngineSettings
from backend.errors import SettingError
from backend.hardware.machine import read_machine
from backend.hardware.peer_probe import probed
from backend.kernel_cache import compile_ahead
from backend.library.checks import check
from backend.library.locations import cache_home
from backend.planner.decide import decide
from backend.planner.kv_choice import KVChoice
from backend.planner.memory import ELEMENT_BYTES
from backend.planner.plan import Plan
from backend.planner.prepare import PAGE_TOKENS
from backend.scheduler import Scheduler
from backend.workers.meeting import Meeting, arrange_meeting
from backend.workers.ranked_executor import RankedExecutor
from backend.workers.start_progress import StartProgress
from backend.workers.worker_messages import Describe, Described, Load, Loaded, Loading, Warm, WarmUp
from backend.workers.workers import Workers
from kvcache.cache_manager import CacheManager
from kvcache.layout import CacheLayout, build_layout
from quant.kv_format import KVFormats, parse_kv_formats

if TYPE_CHECKING:
    from backend.compose_engine import ComposedEngine, OnProgress, Planned

WORKER_COMMAND = (sys.executable, "-P", "-m", "backend.workers.worker_process")
# So many are started before the Plan is made, which says how many there have to be.
MOST_AHEAD = 16
UNMEASURED = (
    "K and V are stored in the model's dtype: how accurate fp8 and int8 are is measured where one rank computes, "
    "and has not been measured here yet."
)


def ranks_to_expect(settings: EngineSettings) -> int:
    """How many ranks the Plan will probably have, before there is a Plan; at least 1. Cheap without a GPU."""
    if settings.tensor_parallel is not None:
        return max(1, min(settings.tensor_parallel, MOST_AHEAD))
    if settings.device == "cpu":
        return 1
    return max(1, min(len(read_machine().gpus), MOST_AHEAD))


def compose_ranks(
    settings: EngineSettings,
    on_progress: OnProgress,
    expected: int,
    *,
    command: Sequence[str] = WORKER_COMMAND,
    even_one: bool = False,
) -> ComposedEngine | Planned:
    """Spawns workers at once, so that their imports run while the rest is found out; plans, loads, and warms up.

    Only the Plan where that has one rank, whose place is this process, unless `even_one`.

    Raises:
        ShardwiseError: as `compose_engine`.
        DeviceLostError: a rank was lost meanwhile.
    """
    workers = _spawn(settings, expected, command)
    try:
        found = _planned(settings, workers)
        ranks = len(found.plan.ranks)
        if ranks == 1 and not even_one:
            workers.close()
            return found
        if ranks != len(workers):
            workers.close()
            workers = _spawn(settings, ranks, command)
        return _compose(settings, on_progress, workers, found)
    except BaseException:
        workers.close()
        raise


def _spawn(settings: EngineSettings, ranks: int, command: Sequence[str]) -> Workers:
    log = Path(settings.log_file) if settings.log_file else None
    return Workers.spawn(ranks, command, worker_environment(settings, ranks, os.environ), log)


def _planned(settings: EngineSettings, workers: Workers) -> Planned:
    from backend.compose_engine import planned

    check(settings.files)
    machine = probed(read_machine())
    facts = workers.ask(0, Describe(settings.files), Described).facts
    found = planned(settings, facts, machine)
    if not found.unmeasured or len(found.plan.ranks) == 1:
        return found
    plan = decide(settings, facts, machine, measured=KVChoice(KVFormats(), UNMEASURED))
    return type(found)(facts, machine, plan, unmeasured=False)


def _compose(settings: EngineSettings, on_progress: OnProgress, workers: Workers, found: Planned) -> ComposedEngine:
    from backend.compose_engine import ComposedEngine

    facts, plan = found.facts, found.plan
    _check_tiers(settings, plan)
    if plan.ranks[0].device == "cpu":
        compile_ahead()
    loaded = _load(settings, on_progress, workers, found, arrange_meeting(cache_home() / "ranks"))
    layout = build_layout(facts.layers, ELEMENT_BYTES[plan.dtype], PAGE_TOKENS, parse_kv_formats(plan.kv_format))
    scheduler = Scheduler(
        CacheManager(
            layout,
            plan.pages,
            namespace=_namespace(settings, plan, layout, loaded),
            host_pages=plan.host_pages,
            disk=hand_over_index(settings, plan) if plan.disk_bytes else None,
            apart=settings.role != "whole",
        ),
        max_context=plan.max_context,
        max_sequences=plan.max_sequences,
        step_tokens=plan.step_tokens,
        recompute_lengths=loaded[0].recompute_lengths,
        scaled_past=loaded[0].scaled_past,
    )
    workers.ready(slow=plan.hosted is not None or any(one.device == "cpu" for one in loaded))
    gc.collect()
    gc.freeze()
    return ComposedEngine(
        engine=Engine(scheduler, RankedExecutor(workers), time.monotonic),
        plan=plan,
        max_context=min(plan.max_context, scheduler.longest_sequence),
        vocabulary=facts.vocabulary,
        weights_bytes=tuple(one.weights_bytes for one in loaded),
        devices=tuple(one.device for one in loaded),
        rank_pids=workers.pids,
    )


def _load(
    settings: EngineSettings, on_progress: OnProgress, workers: Workers, found: Planned, meeting: Meeting
) -> list[Loaded]:
    progress = StartProgress(len(workers))

    def tell(rank: int, loading: Loading) -> None:
        together = progress.report(rank, loading)
        on_progress(together.stage, together.done, together.total)

    orders = [Load(settings, found.plan, rank, found.facts.layers, meeting) for rank in range(len(workers))]
    loaded = workers.prepare(orders, Loaded, tell)
    workers.prepare([WarmUp()] * len(workers), Warm, tell)
    return loaded


def _namespace(settings: EngineSettings, plan: Plan, layout: CacheLayout, loaded: Sequence[Loaded]) -> bytes:
    """Of the whole model's pages: also what is whose, because another division adds up in another order."""
    orders = [
        f"{number}/{len(loaded)} {rank.attention} {rank.mlp} {plan.experts} {order}"
        for number, (rank, one) in enumerate(zip(plan.ranks, loaded, strict=True))
        for order in one.kernel_orders
    ]
    return namespace(settings.files, plan, layout, orders)


def _check_tiers(settings: EngineSettings, plan: Plan) -> None:
    if plan.disk_bytes and settings.role == "whole":
        raise SettingError(
            "--disk-cache is not served over several ranks by this version.",
            f"The model is divided over {len(plan.ranks)} ranks, each of which would keep records of its own.",
            "Use --disk-cache 0, or --tp 1.",
        )
