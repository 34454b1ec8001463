"""decide: turns what was asked, a model's facts and a machine's into a Plan. Pure, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from msgspec.structs import replace

from backend.engine_settings import EngineSettings
from backend.errors import OutOfMemoryError, SettingError
from backend.hardware.machine import Machine
from backend.planner import hosted, memory, tiers
from backend.planner.draft import Draft, Wishes, with_host
from backend.planner.kv_choice import KVChoice, choose_formats
from backend.planner.model_facts import ModelFacts
from backend.planner.plan import MemoryTerm, Plan, Rank
from backend.planner.pool import check_fixed, choose_context, choose_pool
from backend.planner.ranks import choose_ranks, device_targets
from backend.planner.target import Target, choose_dtype
from backend.planner.weight_choice import first_that_fits, smallest
from kvcache.layout import build_layout, rank_layout

PAGE_TOKENS = 16
_STEP_TOKENS = {"cpu": 512, "cuda": 4096}
_MAX_SEQUENCES = {"cpu": 64, "cuda": 256}


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
    _check(settings, facts, machine)
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
    dtype, dtype_reason = choose_dtype(settings.dtype, _weakest(targets))
    step_tokens, max_sequences, step_reason = _step(settings, targets[0])
    if weights_bytes is None:
        weights_bytes = memory.weights_bytes(facts, dtype, weights, targets[0].cuda)
    choice = choose_formats(settings.kv_format, measured)
    layout = build_layout(facts.layers, memory.ELEMENT_BYTES[dtype], PAGE_TOKENS, choice.formats)
    wishes = Wishes(settings, facts, layout, dtype, step_tokens, max_sequences, weights_bytes, weights)
    chosen = choose_ranks(wishes, machine, targets)
    draft = hosted.host_layers(chosen.draft, machine)
    page_bytes, in_host = draft.page_bytes, draft.hosted.host_bytes if draft.hosted else 0
    host_pages, host_reason = tiers.host_pages(settings, machine, targets[0], page_bytes, in_host)
    disk_bytes, cache_dir, disk_reason = tiers.disk(settings, page_bytes)
    draft = with_host(draft, host_pages)
    check_fixed(draft, machine.memory.available)
    pages, pool_reason = choose_pool(draft)
    max_context, context_reason = choose_context(draft, pages)
    threads, threads_reason = _threads(settings, machine, targets[0], len(draft.ranks))
    reasons = (
        *chosen.reasons, dtype_reason, weights_reason, hosted.reason(draft), choice.reason, pool_reason, host_reason,
        disk_reason, context_reason, facts.positions_reason, step_reason, threads_reason,
    )  # fmt: skip
    link = draft.team.link
    return Plan(
        model=settings.files.name,
        architecture=facts.architecture,
        dtype=dtype,
        weight_format=weights,
        kv_format=str(choice.formats),
        tensor_parallel=len(draft.ranks),
        pipeline_stages=1,
        ranks=_ranks(draft, machine, pages),
        max_context=max_context,
        max_sequences=max_sequences,
        step_tokens=step_tokens,
        page_tokens=layout.groups[0].page_tokens,
        page_bytes=page_bytes,
        pages=pages,
        token_bytes=_token_bytes(draft),
        host_pages=host_pages,
        disk_bytes=disk_bytes,
        cache_dir=cache_dir,
        threads=threads,
        reasons=tuple(reason for reason in reasons if reason),
        experts=draft.shares.experts,
        visible_gpus=tuple(gpu.uuid for gpu in machine.gpus) if draft.cuda else (),
        peer_writes=link is None or link.kind != "host",
        hosted=draft.hosted,
    )


def _ranks(draft: Draft, machine: Machine, pages: int) -> tuple[Rank, ...]:
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


def _token_bytes(draft: Draft) -> int:
    """Over all ranks: KV heads that several ranks keep count for each."""
    layout = draft.wishes.layout
    return sum(rank_layout(layout, rank.facts.layers).bytes_per_token for rank in draft.ranks)


def _weakest(targets: Sequence[Target]) -> Target:
    """The device whose types decide: one that does not multiply bfloat16 where there is one, else the first."""
    return min(targets, key=lambda target: target.native_bfloat16)


def _oldest(targets: Sequence[Target]) -> Target:
    """The device whose instructions decide about formats: the one with the lowest compute capability."""
    return min(targets, key=lambda target: target.capability or (0, 0))


def _check(settings: EngineSettings, facts: ModelFacts, machine: Machine) -> None:
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


def _step(settings: EngineSettings, target: Target) -> tuple[int, int, str]:
    """Token budget of a step, and the most sequences in it: each sequence needs room for one token."""
    kind = "cuda" if target.cuda else "cpu"
    tokens, sequences = settings.step_tokens, settings.max_sequences
    if tokens is not None and sequences is not None and sequences > tokens:
        raise SettingError(
            f"--max-sequences {sequences} does not fit --step-tokens {tokens}.",
            "Each sequence of a step needs at least one token of its budget.",
            f"Use --step-tokens {sequences} or more, or fewer sequences.",
        )
    if tokens is None:
        tokens = max(_STEP_TOKENS[kind], sequences or 0)
    if sequences is None:
        sequences = min(_MAX_SEQUENCES[kind], tokens)
    return tokens, sequences, f"A step computes up to {tokens} tokens of up to {sequences} sequences."


def _threads(settings: EngineSettings, machine: Machine, target: Target, ranks: int) -> tuple[int, str]:
    if settings.threads is not None:
        return settings.threads, f"{settings.threads} threads compute, as --threads asks."
    if target.cuda:
        return 1, ""
    cores, cpu = machine.cpu.usable_cores, machine.cpu
    limit = " that the processor quota allows" if cpu.quota is not None and cores < cpu.cores else ""
    each = f", {max(1, cores // ranks)} in each process" if ranks > 1 else ""
    return cores, f"{cores} threads compute, one for each physical core{limit}{each}."
