"""compose_engine: from settings to a running Engine; the one place where its parts are put together.

One rank computes in this process, and here stands how; several are `compose_ranks`'s.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backend.accuracy.choose import choose
from backend.accuracy.store import accuracy_key, default_store
from backend.compose_ranks import compose_ranks, ranks_to_expect
from backend.compose_tiers import compose_tiers
from backend.engine import Engine
from backend.engine_settings import EngineSettings
from backend.errors import SettingError
from backend.hardware.machine import Machine, read_machine
from backend.hardware.peer_probe import probed
from backend.hardware.process_memory import return_freed_memory
from backend.hardware.visible_gpus import show_gpus
from backend.kernel_cache import compile_ahead
from backend.layer_span import LayerSpan
from backend.library.checks import check
from backend.parallel.division import Division
from backend.planner.decide import decide
from backend.planner.model_facts import ModelFacts
from backend.planner.plan import Plan
from backend.planner.prepare import PAGE_TOKENS

if TYPE_CHECKING:
    import torch

    from backend.parallel.group import Group
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
    rank_pids: tuple[int, ...]


def plan_engine(settings: EngineSettings) -> Plan:
    """The Plan that an engine with these settings would obey. Checks the files; takes no memory for weights.

    Raises:
        ShardwiseError: a broken or unsupported model, a setting that cannot be obeyed, too little memory.
    """
    return planned_from_files(settings).plan


@dataclass(frozen=True, slots=True)
class Planned:
    """A Plan, what it was made of, and whether --kv-format auto has still to be measured."""

    facts: ModelFacts
    machine: Machine
    plan: Plan
    unmeasured: bool


def planned_from_files(settings: EngineSettings) -> Planned:
    """The Plan of `plan_engine`, with what it was made of. Raises ShardwiseError as that does."""
    # Both load torch and transformers, which the modules that only name this one need not pay for.
    from backend.surgery.describe import describe
    from backend.surgery.load import read_config

    check(settings.files)
    return planned(settings, describe(read_config(settings.files)), probed(read_machine()))


def planned(settings: EngineSettings, facts: ModelFacts, machine: Machine) -> Planned:
    """The Plan for a model of which these facts are known. Raises ShardwiseError as `plan_engine` does."""
    plan = decide(settings, facts, machine)
    if settings.kv_format != "auto":
        return Planned(facts, machine, plan, unmeasured=False)
    measured = default_store().read(_accuracy_key(settings, plan, machine))
    if measured is None:
        return Planned(facts, machine, plan, unmeasured=True)
    plan = decide(settings, facts, machine, measured=choose(measured), held=plan.weight_format)
    return Planned(facts, machine, plan, unmeasured=False)


def _accuracy_key(settings: EngineSettings, plan: Plan, machine: Machine) -> str:
    return accuracy_key(settings.files, plan.dtype, plan.ranks[0].device, machine, plan.weight_format)


def load_served(
    settings: EngineSettings,
    plan: Plan,
    on_progress: OnProgress,
    rank: int = 0,
    group: Group | None = None,
    span: LayerSpan | None = None,
) -> tuple[ServedModel, Team | None]:
    """The model on the rank's device with its kernels, and the threads that compute on a processor.

    group: what a rank of several computes with, of which each has its part of the model.
    span: for a stage, of which `plan` is, its layers.

    Raises:
        ShardwiseError: a file that turns out broken while it is read.
    """
    show_gpus(plan.visible_gpus)
    import torch

    from backend.surgery.load import load_model
    from backend.surgery.pack import pack_model
    from quant.weight_format import WEIGHT_FORMATS

    _check_library(plan)
    dtype, device = getattr(torch, plan.dtype), torch.device(plan.ranks[rank].device)
    weight_format = WEIGHT_FORMATS[plan.weight_format]
    threads = max(1, plan.threads // len(plan.ranks))
    torch.set_num_threads(threads)
    on_progress("load", 0, settings.files.bytes if group is None and span is None else 0)
    model = load_model(
        settings.files,
        dtype=dtype,
        device=device,
        on_progress=lambda done, total: on_progress("load", done, total),
        division=None if group is None else plan_division(plan, rank),
        group=group,
        stored=None if plan.weight_format == "model" else weight_format,
        hosted=plan.hosted.layers if plan.hosted else (),
        span=span,
    )
    on_progress("pack", 0, 0)
    team = _team(device, threads)
    model = pack_model(model, weight_format, team)
    if model.hosted:
        # It loads accelerate, which no other start need pay for.
        from backend.surgery.layer_stream import stream_layers

        model = stream_layers(model)
    # What reading and packing left behind would stay in this process: 150 MiB of the starter model's, on a processor.
    gc.collect()
    return_freed_memory()
    return model, team


def _check_library(plan: Plan) -> None:
    """Refuses int8 and nf4 weights where the library that multiplies them does not load. Raises SettingError."""
    if plan.weight_format not in ("int8", "nf4"):
        return
    from quant.weights.bits_and_bytes import bits_and_bytes

    try:
        bits_and_bytes()
    except (ImportError, OSError, RuntimeError) as error:
        raise SettingError(
            f"--weights {plan.weight_format} needs bitsandbytes, which cannot be loaded.",
            f"Loading it says: {error}.",
            "Install it (pip install 'bitsandbytes>=0.50'), or use --weights model.",
        ) from error


def plan_division(plan: Plan, rank: int) -> Division:
    """How the Plan divides the model, as this rank sees it."""
    attention, mlp = (tuple(getattr(one, name) for one in plan.ranks) for name in ("attention", "mlp"))
    return Division(rank, attention, mlp, plan.experts)


def _measured(
    settings: EngineSettings, planned: Planned, model: ServedModel, team: Team | None, on_progress: OnProgress
) -> Plan:
    """The Plan with the formats that --kv-format auto takes of this model here; they are kept for later starts."""
    from backend.accuracy.automatic import measure_for_start

    contexts = measure_for_start(model, settings.files, team, lambda done, total: on_progress("measure", done, total))
    plan = planned.plan
    default_store().write(_accuracy_key(settings, plan, planned.machine), contexts)
    return decide(settings, planned.facts, planned.machine, measured=choose(contexts), held=plan.weight_format)


def compose_engine(settings: EngineSettings, on_progress: OnProgress) -> ComposedEngine:
    """Checks, plans, loads and warms up; `on_progress(stage, done, total)` is told of each stage.

    Raises:
        ShardwiseError: as `plan_engine`, and a file that turns out broken while it is read.
    """
    on_progress("read", 0, 0)
    ranks = ranks_to_expect(settings)
    if ranks == 1:
        return compose_alone(settings, on_progress, planned_from_files(settings))
    composed = compose_ranks(settings, on_progress, ranks)
    return compose_alone(settings, on_progress, composed) if isinstance(composed, Planned) else composed


def compose_alone(settings: EngineSettings, on_progress: OnProgress, found: Planned) -> ComposedEngine:
    """An engine of one rank, which computes in this process. Raises as `compose_engine`."""
    from backend.runner import Runner
    from backend.scheduler import Scheduler
    from kvcache.cache_manager import CacheManager
    from kvcache.layout import build_layout
    from quant.kv_format import parse_kv_formats

    facts, plan = found.facts, found.plan
    if plan.ranks[0].device == "cpu":
        compile_ahead()
    model, team = load_served(settings, plan, on_progress)
    if found.unmeasured:
        plan = _measured(settings, found, model, team, on_progress)
    on_progress("warm up", 0, 0)
    layout = build_layout(facts.layers, model.dtype.itemsize, PAGE_TOKENS, parse_kv_formats(plan.kv_format))
    runner = Runner(model, layout, plan.pages, team)
    tiers = compose_tiers(settings, plan, layout, runner)
    runner.warm_up(PROCESSOR_WARM_UP if model.device.type == "cpu" else plan.step_tokens)
    scheduler = Scheduler(
        CacheManager(
            layout,
            plan.pages,
            namespace=tiers.namespace,
            host_pages=plan.host_pages,
            disk=tiers.disk,
            apart=settings.role != "whole",
        ),
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
        rank_pids=(os.getpid(),),
    )


def _team(device: torch.device, threads: int) -> Team | None:
    """The threads that compute on a processor; a GPU needs none."""
    if device.type != "cpu":
        return None
    from quant.cpu.team import Team

    return Team(threads)
