"""decide: turns what was asked, a model's facts and a machine's into a Plan. Pure, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from msgspec.structs import replace

from backend.engine_settings import EngineSettings
from backend.errors import OutOfMemoryError, SettingError
from backend.hardware.machine import Machine
from backend.planner import tiers
from backend.planner.draft import Draft
from backend.planner.kv_choice import KVChoice
from backend.planner.model_facts import ModelFacts
from backend.planner.plan import MemoryTerm, Plan, Rank
from backend.planner.pool import check_fixed, choose_context, choose_pool
from backend.planner.prepare import Prepared, prepare
from backend.planner.ranks import device_targets
from backend.planner.target import Target
from backend.planner.weight_choice import first_that_fits, smallest
from kvcache.layout import rank_layout


def decide(
    settings: EngineSettings,
    facts: ModelFacts,
    machine: Machine,
    weights_bytes: int | None = None,
    measured: KVChoice | None = None,
    held: str | None = None,
) -> Plan:
    """Resolves every "auto" of the settings. What was asked for explicitly is obeyed or refused, never
    changed.

    Args:
        weights_bytes: what the weights occupy once loaded, where it is known better than parameters times
        element.
        measured: what --kv-format auto takes, where the accuracy probe has run.
        held: the format that --weights auto took before, where weights lie in it already.

    Raises:
        SettingError: something was asked for that this version or machine cannot do.
        OutOfMemoryError: the weights and one context do not fit the device.
    """
    check_settings(settings, facts, machine)
    targets = device_targets(settings, machine)

    device = _oldest(targets)

    def plan(weights: str, reason: str, wanted: EngineSettings = settings) -> Plan:
        return _decide(wanted, facts, machine, targets, weights, reason, weights_bytes, measured)

    if settings.host_weights is not None:
        return first_that_fits(settings.weights, device, plan, held)
    resident = partial(plan, wanted=replace(settings, host_weights=0))
    try:
        return first_that_fits(settings.weights, device, resident, held)
    except OutOfMemoryError:
        return plan(*smallest(settings.weights, device, held))


def _decide(
    settings: EngineSettings,
    facts: ModelFacts,
    machine: Machine,
    targets: tuple[Target, ...],
    weights: str,
    weights_reason: str,
    weights_bytes: int | None,
    measured: KVChoice | None,
) -> Plan:
    """The Plan with weights in that format."""
    prepared = prepare(settings, facts, machine, targets, weights, weights_reason, weights_bytes, measured)
    return settle(prepared, machine)


def settle(prepared: Prepared, machine: Machine) -> Plan:
    """The Plan of a draft: its pool and context.

    Raises OutOfMemoryError where it leaves no room for one.
    """
    draft, settings = prepared.draft, prepared.draft.wishes.settings
    wishes, layout = draft.wishes, draft.wishes.layout
    page_bytes = draft.page_bytes
    disk_bytes, cache_dir, disk_reason = tiers.disk(settings, page_bytes)
    check_fixed(draft, machine.memory.available)
    pages, pool_reason = choose_pool(draft)
    max_context, context_reason = choose_context(draft, pages)
    threads, threads_reason = _threads(settings, machine, draft.ranks[0].target, len(draft.ranks))
    before, after = prepared.reasons
    reasons = (
        *before, pool_reason, prepared.host_reason, disk_reason, context_reason, wishes.facts.positions_reason, *after,
        threads_reason,
    )  # fmt: skip
    link = draft.team.link
    return Plan(
        model=settings.files.name,
        architecture=wishes.facts.architecture,
        dtype=wishes.dtype,
        weight_format=wishes.weight_format,
        kv_format=str(layout.formats),
        tensor_parallel=len(draft.ranks),
        pipeline_stages=1,
        ranks=ranks_of_draft(draft, machine, pages),
        max_context=max_context,
        max_sequences=wishes.max_sequences,
        step_tokens=wishes.step_tokens,
        page_tokens=layout.groups[0].page_tokens,
        page_bytes=page_bytes,
        pages=pages,
        token_bytes=token_bytes(draft),
        host_pages=draft.host_pages,
        disk_bytes=disk_bytes,
        cache_dir=cache_dir,
        threads=threads,
        reasons=tuple(reason for reason in reasons if reason),
        experts=draft.shares.experts,
        visible_gpus=tuple(gpu.uuid for gpu in machine.gpus) if draft.cuda else (),
        peer_writes=link is None or link.kind != "host",
        hosted=draft.hosted,
    )


def ranks_of_draft(draft: Draft, machine: Machine, pages: int) -> tuple[Rank, ...]:
    """A draft's ranks with a pool of so many pages, numbered from 0."""
    return tuple(
        Rank(
            number,
            rank.target.device,
            _memory(rank.terms, pages * rank.page_bytes),
            attention,
            mlp,
            rank.page_bytes,
            machine.gpus[int(rank.target.device.removeprefix("cuda:"))].numa_node if rank.target.cuda else None,
        )
        for number, (rank, attention, mlp) in enumerate(
            zip(draft.ranks, draft.shares.attention, draft.shares.mlp, strict=True)
        )
    )


def _memory(terms: Sequence[tuple[str, int]], kv: int) -> tuple[MemoryTerm, ...]:
    weights, *others = terms
    return tuple(MemoryTerm(name, count) for name, count in (weights, ("kv", kv), *others))


def token_bytes(draft: Draft) -> int:
    """Over all ranks: KV heads that several ranks keep count for each."""
    layout = draft.wishes.layout
    return sum(rank_layout(layout, rank.facts.layers).bytes_per_token for rank in draft.ranks)


def _oldest(targets: Sequence[Target]) -> Target:
    """The device whose instructions decide about formats: the one with the lowest compute capability."""
    return min(targets, key=lambda target: target.capability or (0, 0))


def check_settings(settings: EngineSettings, facts: ModelFacts, machine: Machine) -> None:
    """Refuses what cannot be obeyed whatever the memory."""
    counts = (
        ("--max-context", settings.max_context, 2),
        ("--max-sequences", settings.max_sequences, 1),
        ("--kv-pool", settings.kv_pool, 1),
        ("--host-cache", settings.host_cache, 0),
        ("--host-weights", settings.host_weights, 0),
        ("--disk-cache", settings.disk_cache, 0),
        ("--step-tokens", settings.step_tokens, 1),
        ("--threads", settings.threads, 1),
        ("--tp", settings.tensor_parallel, 1),
    )
    for option, count, least in counts:
        if count is not None and count < least:
            raise SettingError(f"{option} {count} is too small.", f"It must be at least {least}.")
    if settings.max_context is not None and settings.max_context > facts.max_positions:
        raise SettingError(
            f"--max-context {settings.max_context} is more than the model can do.",
            facts.positions_reason or f"It was made for {facts.max_positions} positions.",
            f"Use --max-context {facts.max_positions} or less.",
        )
    if settings.threads is not None and settings.threads > machine.cpu.threads:
        raise SettingError(
            f"--threads {settings.threads} is more than this process may use.",
            f"It may run on {machine.cpu.threads} logical processors.",
            f"Use --threads {machine.cpu.usable_cores}, one for each physical core.",
        )


def _threads(settings: EngineSettings, machine: Machine, target: Target, ranks: int) -> tuple[int, str]:
    if settings.threads is not None:
        return settings.threads, f"{settings.threads} threads compute, as --threads asks."
    if target.cuda:
        return 1, ""
    cores, cpu = machine.cpu.usable_cores, machine.cpu
    limit = " that the processor quota allows" if cpu.quota is not None and cores < cpu.cores else ""
    each = f", {max(1, cores // ranks)} in each process" if ranks > 1 else ""
    return cores, f"{cores} threads compute, one for each physical core{limit}{each}."
