"""decide: turns what was asked, a model's facts and a machine's into a Plan for one rank. Pure, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from backend.engine_settings import EngineSettings
from backend.errors import OutOfMemoryError, SettingError
from backend.hardware.machine import Machine
from backend.planner import memory, tiers
from backend.planner.kv_choice import KVChoice, choose_formats
from backend.planner.model_facts import ModelFacts
from backend.planner.plan import MemoryTerm, Plan, Rank
from backend.planner.target import Target, choose_dtype, choose_target
from backend.planner.units import human_bytes
from backend.planner.weight_choice import AUTO, first_that_fits
from kvcache.layout import CacheLayout, build_layout

PAGE_TOKENS = 16
# Below this a chat is of no use: an automatic context that would be shorter is refused instead.
SHORTEST_CONTEXT = 256
# Of the free main memory, for pages: the machine is also somebody's desktop.
_CPU_POOL_SHARE = 0.25
_STEP_TOKENS = {"cpu": 512, "cuda": 4096}
_MAX_SEQUENCES = {"cpu": 64, "cuda": 256}


@dataclass(frozen=True, slots=True)
class _Draft:
    """A Plan before its pool: what is asked of which model and device, and the memory already spent.

    `host_cache` is spent on the device where that is the processor; beside a GPU it is 0.
    """

    settings: EngineSettings
    facts: ModelFacts
    target: Target
    dtype: str
    layout: CacheLayout
    step_tokens: int
    max_sequences: int
    weights: int
    activations: int
    libraries: int
    host_cache: int

    @property
    def left(self) -> int:
        """Bytes that the pool may take."""
        return self.target.usable - self.weights - self.activations - self.libraries - self.host_cache

    @property
    def terms(self) -> tuple[tuple[str, int], ...]:
        """The memory spent, by term."""
        fixed = (("weights", self.weights), ("activations", self.activations), ("libraries", self.libraries))
        return (*fixed, ("host cache", self.host_cache)) if self.host_cache else fixed

    def pages_of(self, tokens: int) -> int:
        return memory.pages_of_context(self.layout, tokens, self.step_tokens)


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
        held: the format that --weights auto took before, of an earlier Plan that this one carries on.

    Raises:
        SettingError: something was asked for that this version or machine cannot do.
        OutOfMemoryError: the weights and one context do not fit the device.
    """
    _check(settings, facts, machine)
    target = choose_target(settings.device, machine)

    def plan(weights: str, reason: str) -> Plan:
        return _decide(settings, facts, machine, target, weights, reason, weights_bytes, measured)

    return first_that_fits(settings.weights, target, plan, held)


def _decide(
    settings: EngineSettings,
    facts: ModelFacts,
    machine: Machine,
    target: Target,
    weights: str,
    weights_reason: str,
    weights_bytes: int | None,
    measured: KVChoice | None,
) -> Plan:
    """The Plan with weights in that format."""
    dtype, dtype_reason = choose_dtype(settings.dtype, target)
    step_tokens, max_sequences, step_reason = _step(settings, target)
    if weights_bytes is None:
        weights_bytes = memory.weights_bytes(facts, dtype, weights, target.cuda)
    choice = choose_formats(settings.kv_format, measured)
    layout = build_layout(facts.layers, memory.ELEMENT_BYTES[dtype], PAGE_TOKENS, choice.formats)
    host_pages, host_reason = tiers.host_pages(settings, machine, target, layout.page_bytes)
    disk_bytes, cache_dir, disk_reason = tiers.disk(settings, layout.page_bytes)
    draft = _Draft(
        settings,
        facts,
        target,
        dtype,
        layout,
        step_tokens,
        max_sequences,
        weights_bytes,
        memory.activation_bytes(facts, dtype, step_tokens, max_sequences, target.cuda)
        + memory.product_bytes(facts, dtype, weights, target.cuda),
        memory.LIBRARIES_CUDA if target.cuda else memory.LIBRARIES_CPU,
        0 if target.cuda else host_pages * layout.page_bytes,
    )
    _check_fixed(draft, machine.memory.available)
    pages, pool_reason = _pool(draft)
    max_context, context_reason = _context(draft, pages)
    threads, threads_reason = _threads(settings, machine, target)
    reasons = (
        target.reason, dtype_reason, weights_reason, choice.reason, pool_reason, host_reason, disk_reason,
        context_reason, step_reason, threads_reason,
    )  # fmt: skip
    return Plan(
        model=settings.files.name,
        architecture=facts.architecture,
        dtype=dtype,
        weight_format=weights,
        kv_format=str(choice.formats),
        tensor_parallel=1,
        pipeline_stages=1,
        ranks=(Rank(0, target.device, _memory(draft, pages * layout.page_bytes)),),
        max_context=max_context,
        max_sequences=max_sequences,
        step_tokens=step_tokens,
        page_tokens=layout.groups[0].page_tokens,
        page_bytes=layout.page_bytes,
        pages=pages,
        token_bytes=layout.bytes_per_token,
        host_pages=host_pages,
        disk_bytes=disk_bytes,
        cache_dir=cache_dir,
        threads=threads,
        reasons=tuple(reason for reason in reasons if reason),
    )


def _memory(draft: _Draft, kv: int) -> tuple[MemoryTerm, ...]:
    weights, *others = draft.terms
    return tuple(MemoryTerm(name, count) for name, count in (weights, ("kv", kv), *others))


def _check(settings: EngineSettings, facts: ModelFacts, machine: Machine) -> None:
    """Refuses what cannot be obeyed whatever the memory."""
    counts = (
        ("--max-context", settings.max_context, 2),
        ("--max-sequences", settings.max_sequences, 1),
        ("--kv-pool", settings.kv_pool, 1),
        ("--host-cache", settings.host_cache, 0),
        ("--disk-cache", settings.disk_cache, 0),
        ("--step-tokens", settings.step_tokens, 1),
        ("--threads", settings.threads, 1),
    )
    for option, count, least in counts:
        if count is not None and count < least:
            raise SettingError(f"{option} {count} is too small.", f"It must be at least {least}.")
    if settings.max_context is not None and settings.max_context > facts.max_positions:
        raise SettingError(
            f"--max-context {settings.max_context} is more than the model can do.",
            f"It was made for {facts.max_positions} positions.",
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


def _check_fixed(draft: _Draft, free_main: int) -> None:
    """Refuses what leaves no memory for a pool, and an explicit host cache that main memory does not hold."""
    spent = draft.weights + draft.libraries
    if draft.left + draft.host_cache <= 0:
        term = "weights" if spent >= draft.target.usable else "activations"
        size = draft.weights if term == "weights" else draft.activations
        _refuse(draft, term, size, _smaller(draft))
    if draft.settings.host_cache:
        taken = memory.LIBRARIES_CPU if draft.target.cuda else spent + draft.activations
        tiers.check_host_memory(draft.settings.host_cache, free_main, taken)


def _smaller(draft: _Draft) -> str:
    """The next format of weights that would fit, or that the model has to be a smaller one."""
    dtype, cuda = draft.dtype, draft.target.cuda
    for name in AUTO[1:]:
        held = memory.weights_bytes(draft.facts, dtype, name, cuda)
        if held < draft.weights and held + draft.activations + draft.libraries < draft.target.usable:
            return f"--weights {name} ({human_bytes(held)})"
    return "a smaller or more strongly quantized model"


def _refuse(draft: _Draft, term: str, size: int, first_way: str) -> NoReturn:
    target = draft.target
    beside = ", ".join(f"{name} {human_bytes(count)}" for name, count in draft.terms if name != term)
    second_way = "fewer --max-sequences or --step-tokens" if term == "activations" else "free memory there"
    raise OutOfMemoryError(
        f"The model does not fit {target.label}: its {term} need {human_bytes(size)}.",
        f"{human_bytes(target.usable)} can be used ({human_bytes(target.free)} are free), of which {beside} are taken.",
        f"Two ways out: {first_way}, or {second_way}.",
    )


def _pool(draft: _Draft) -> tuple[int, str]:
    """Pages of the pool, and why."""
    settings, page_bytes = draft.settings, draft.layout.page_bytes
    if settings.kv_pool is not None:
        if settings.kv_pool > draft.left:
            _refuse(draft, "kv", settings.kv_pool, f"--kv-pool {draft.left >> 20}MiB or less")
        return settings.kv_pool // page_bytes, (
            f"The page pool has {human_bytes(settings.kv_pool)}, as --kv-pool asks."
        )
    if draft.target.cuda:
        return draft.left // page_bytes, (
            "The page pool takes what the other terms leave of 90% of the GPU's free memory."
        )
    wanted = draft.pages_of(settings.max_context or draft.facts.max_positions)
    share = int(draft.target.free * _CPU_POOL_SHARE) // page_bytes
    if settings.max_context is not None:
        share = max(share, wanted)
    pages = min(share, draft.max_sequences * wanted, draft.left // page_bytes)
    if pages == draft.max_sequences * wanted:
        return pages, f"The page pool holds {draft.max_sequences} sequences of the longest context."
    return pages, f"The page pool takes {human_bytes(pages * page_bytes)} of the free main memory."


def _context(draft: _Draft, pages: int) -> tuple[int, str]:
    """Most positions of a sequence, and why."""
    settings, most = draft.settings, draft.facts.max_positions
    holds = memory.context_of_pages(draft.layout, pages, draft.step_tokens, most)
    least = settings.max_context or min(SHORTEST_CONTEXT, most)
    if holds < least:
        needed = draft.pages_of(least) * draft.layout.page_bytes
        way = f"--max-context {holds}" if holds >= SHORTEST_CONTEXT else "a smaller model"
        if settings.kv_pool is None:
            _refuse(draft, "kv", needed, way)
        raise OutOfMemoryError(
            f"The page pool does not hold one context: its kv needs {human_bytes(needed)}.",
            f"--kv-pool gives it {human_bytes(settings.kv_pool)}, and a context has {least} positions.",
            f"Two ways out: {way}, or --kv-pool {-(-needed >> 20)}MiB.",
        )
    if settings.max_context is not None:
        return settings.max_context, f"The context is {settings.max_context}, as --max-context asks."
    if holds == most:
        return holds, f"The context is the model's own, {holds}."
    return holds, f"The context is {holds} of the model's {most}: the pool holds no more."


def _threads(settings: EngineSettings, machine: Machine, target: Target) -> tuple[int, str]:
    if settings.threads is not None:
        return settings.threads, f"{settings.threads} threads compute, as --threads asks."
    if target.cuda:
        return 1, ""
    cores, cpu = machine.cpu.usable_cores, machine.cpu
    limit = " that the processor quota allows" if cpu.quota is not None and cores < cpu.cores else ""
    return cores, f"{cores} threads compute, one for each physical core{limit}."
