"""compose_engine: from settings to a running Engine of one rank; the one place where its parts are put together."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backend.accuracy.choose import choose
from backend.accuracy.store import accuracy_key, default_store
from backend.compose_tiers import compose_tiers
from backend.engine import Engine
from backend.engine_settings import EngineSettings
from backend.hardware.machine import Machine, read_machine
from backend.hardware.peer_probe import probed
from backend.hardware.visible_gpus import show_gpus
from backend.library.checks import check
from backend.planner.decide import PAGE_TOKENS, decide
from backend.planner.model_facts import ModelFacts
from backend.planner.plan import Plan

if TYPE_CHECKING:
    from backend.surgery.model import ServedModel
    from quant.cpu.team import Team

OnProgress = Callable[[str, int, int], None]

# Tokens of the warm-up's prefill on a processor, where a full step would cost more time than it finds out.
PROCESSOR_WARM_UP = 32


@dataclass(frozen=True)
class ComposedEngine:
    """An engine that is ready to step, and what Ready tells of it."""

    engine: Engine
    plan: Plan
    max_context: int
    vocabulary: int
    weights_bytes: tuple[int, ...]
    devices: tuple[str, ...]


def plan_engine(settings: EngineSettings) -> Plan:
    """The Plan that an engine with these settings would obey. Checks the files; takes no memory for weights.

    Raises:
        ShardwiseError: a broken or unsupported model, a setting that cannot be obeyed, too little memory.
    """
    return _planned(settings).plan


@dataclass(frozen=True, slots=True)
class _Planned:
    """A Plan, what it was made of, and whether --kv-format auto has still to be measured."""

    facts: ModelFacts
    machine: Machine
    plan: Plan
    unmeasured: bool


def _planned(settings: EngineSettings) -> _Planned:
    # Both load torch and transformers, which the modules that only name this one need not pay for.
    from backend.surgery.describe import describe
    from backend.surgery.load import read_config

    check(settings.files)
    facts, machine = describe(read_config(settings.files)), probed(read_machine())
    plan = decide(settings, facts, machine)
    if settings.kv_format != "auto":
        return _Planned(facts, machine, plan, unmeasured=False)
    measured = default_store().read(accuracy_key(settings.files, plan.dtype, plan.ranks[0].device, machine))
    if measured is None:
        return _Planned(facts, machine, plan, unmeasured=True)
    return _Planned(facts, machine, decide(settings, facts, machine, measured=choose(measured)), unmeasured=False)


def load_served(settings: EngineSettings, plan: Plan, on_progress: OnProgress) -> tuple[ServedModel, Team | None]:
    """The model on the plan's device with its kernels, and the threads that compute on a processor.

    Raises:
        ShardwiseError: a file that turns out broken while it is read.
    """
    show_gpus(plan.visible_gpus)
    import torch

    from backend.surgery.load import load_model
    from backend.surgery.pack import pack_model
    from quant.weight_format import WEIGHT_FORMATS

    dtype, device = getattr(torch, plan.dtype), torch.device(plan.ranks[0].device)
    torch.set_num_threads(plan.threads)
    on_progress("load", 0, settings.files.bytes)
    model = load_model(
        settings.files, dtype=dtype, device=device, on_progress=lambda done, total: on_progress("load", done, total)
    )
    on_progress("pack", 0, 0)
    team = _team(plan)
    return pack_model(model, WEIGHT_FORMATS[plan.weight_format], team), team


def _measured(
    settings: EngineSettings, planned: _Planned, model: ServedModel, team: Team | None, on_progress: OnProgress
) -> Plan:
    """The Plan with the formats that --kv-format auto takes of this model here; they are kept for later starts."""
    from backend.accuracy.automatic import measure_for_start

    contexts = measure_for_start(model, settings.files, team, lambda done, total: on_progress("measure", done, total))
    plan = planned.plan
    default_store().write(accuracy_key(settings.files, plan.dtype, plan.ranks[0].device, planned.machine), contexts)
    return decide(settings, planned.facts, planned.machine, measured=choose(contexts))


def compose_engine(settings: EngineSettings, on_progress: OnProgress) -> ComposedEngine:
    """Checks, plans, loads and warms up; `on_progress(stage, done, total)` is told of each stage.

    Raises:
        ShardwiseError: as `plan_engine`, and a file that turns out broken while it is read.
    """
    on_progress("read", 0, 0)
    from backend.runner import Runner
    from backend.scheduler import Scheduler
    from kvcache.cache_manager import CacheManager
    from kvcache.layout import build_layout
    from quant.kv_format import parse_kv_formats

    planned = _planned(settings)
    facts, plan = planned.facts, planned.plan
    model, team = load_served(settings, plan, on_progress)
    if planned.unmeasured:
        plan = _measured(settings, planned, model, team, on_progress)
    on_progress("warm up", 0, 0)
    layout = build_layout(facts.layers, model.dtype.itemsize, PAGE_TOKENS, parse_kv_formats(plan.kv_format))
    runner = Runner(model, layout, plan.pages, team)
    runner.warm_up(PROCESSOR_WARM_UP if model.device.type == "cpu" else plan.step_tokens)
    tiers = compose_tiers(settings, plan, layout, runner)
    scheduler = Scheduler(
        CacheManager(layout, plan.pages, namespace=tiers.namespace, host_pages=plan.host_pages, disk=tiers.disk),
        max_context=plan.max_context,
        max_sequences=plan.max_sequences,
        step_tokens=plan.step_tokens,
        recompute_lengths=model.recompute_lengths,
        scaled_past=model.scaled_past,
    )
    # A full collection over all that loading left behind would stop a request for a third of a second.
    gc.collect()
    gc.freeze()
    return ComposedEngine(
        engine=Engine(scheduler, runner, time.monotonic),
        plan=plan,
        max_context=min(plan.max_context, scheduler.longest_sequence),
        vocabulary=facts.vocabulary,
        weights_bytes=(model.weights_bytes,),
        devices=(str(model.device),),
    )


def _team(plan: Plan) -> Team | None:
    """The threads that compute on a processor; a GPU needs none."""
    if plan.ranks[0].device != "cpu":
        return None
    from quant.cpu.team import Team

    return Team(plan.threads)
