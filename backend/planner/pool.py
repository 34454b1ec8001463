"""How many pages a draft has room for, and the context they hold; refuses by name what does not fit. Pure, no torch."""

from __future__ import annotations

from typing import NoReturn

from backend.errors import OutOfMemoryError
from backend.planner import memory, tiers
from backend.planner.draft import Draft
from backend.planner.units import human_bytes
from backend.planner.weight_choice import AUTO

# Below this a chat is of no use: an automatic context that would be shorter is refused instead.
SHORTEST_CONTEXT = 256
# Of the free main memory, for pages: the machine is also somebody's desktop.
CPU_POOL_SHARE = 0.25


def holds_context(draft: Draft, tokens: int) -> bool:
    """Whether the pool that this draft would get holds a sequence of so many positions."""
    if draft.left <= 0:
        return False
    asked = draft.wishes.settings.kv_pool
    pool = draft.left if asked is None else min(asked, draft.left)
    return draft.wishes.pages_of(tokens) <= pool // draft.page_bytes


def check_fixed(draft: Draft, free_main: int) -> None:
    """Refuses what leaves no memory for a pool, and an explicit host cache that main memory does not hold."""
    host = 0 if draft.cuda else draft.host_pages * draft.page_bytes
    if draft.left + host <= 0:
        terms = dict(draft.tightest.terms)
        term = "weights" if short_term(draft) == "weights" else "activations"
        _refuse(draft, term, _whole(draft, terms[term]), _smaller(draft))
    if draft.wishes.settings.host_cache:
        ranks = len(draft.ranks)
        layers = draft.hosted.host_bytes if draft.hosted else 0
        beside = ranks * memory.LIBRARIES_BESIDE_GPU + layers
        taken = beside if draft.cuda else sum(rank.spent for rank in draft.ranks) - host
        tiers.check_host_memory(draft.wishes.settings.host_cache, free_main, taken)


def short_term(draft: Draft) -> str:
    """Which term is too large for the tightest device: the first that does not fit beside those before it."""
    tight = draft.tightest
    terms, usable = dict(tight.terms), tight.target.usable // _sharing(draft)
    if terms["weights"] + terms["libraries"] + terms.get("communication", 0) >= usable:
        return "weights"
    return "activations" if tight.spent >= usable else "kv"


def _smaller(draft: Draft) -> str:
    """The next format of weights that would fit, or that the model has to be a smaller one."""
    wishes, rank = draft.wishes, draft.tightest
    for name in AUTO[1:]:
        whole = memory.weights_bytes(wishes.facts, wishes.dtype, name, draft.cuda)
        held = whole * rank.facts.parameters // wishes.facts.parameters
        more = memory.libraries_bytes(name, draft.cuda) - dict(rank.terms)["libraries"]
        freed = dict(rank.terms)["weights"] - held - more
        if freed > 0 and _whole(draft, rank.spent - freed) < rank.target.usable:
            return f"--weights {name} ({human_bytes(_whole(draft, held))})"
    return "a smaller or more strongly quantized model"


def choose_pool(draft: Draft) -> tuple[int, str]:
    """Pages of the pool, and why."""
    settings, page_bytes = draft.wishes.settings, draft.page_bytes
    if settings.kv_pool is not None:
        if settings.kv_pool > draft.left:
            _refuse(draft, "kv", settings.kv_pool, f"--kv-pool {draft.left >> 20}MiB or less")
        return settings.kv_pool // page_bytes, (
            f"The page pool has {human_bytes(settings.kv_pool)}, as --kv-pool asks."
        )
    if draft.cuda:
        return draft.left // page_bytes, _gpu_reason(draft)
    wanted = draft.wishes.pages_of(settings.max_context or draft.wishes.facts.max_positions)
    share = int(draft.ranks[0].target.free * CPU_POOL_SHARE) // page_bytes
    if settings.max_context is not None:
        share = max(share, wanted)
    pages = min(share, draft.wishes.max_sequences * wanted, draft.left // page_bytes)
    if pages == draft.wishes.max_sequences * wanted:
        return pages, f"The page pool holds {draft.wishes.max_sequences} sequences of the longest context."
    return pages, f"The page pool takes {human_bytes(pages * page_bytes)} of the free main memory."


def choose_context(draft: Draft, pages: int) -> tuple[int, str]:
    """Most positions of a sequence, and why."""
    settings, most = draft.wishes.settings, draft.wishes.facts.max_positions
    holds = memory.context_of_pages(draft.wishes.layout, pages, draft.wishes.step_tokens, most)
    least = settings.max_context or min(SHORTEST_CONTEXT, most)
    if holds < least:
        needed = draft.wishes.pages_of(least) * draft.page_bytes
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
    if holds == most and draft.wishes.facts.positions_reason:
        return holds, f"The context is {holds}."
    if holds == most:
        return holds, f"The context is the model's own, {holds}."
    return holds, f"The context is {holds} of the model's {most}: the pool holds no more."


def _gpu_reason(draft: Draft) -> str:
    if len(draft.ranks) == 1:
        return "The page pool takes what the other terms leave of 90% of the GPU's free memory."
    full = draft.ranks.index(draft.tightest)
    return (
        "The page pool takes what the other terms leave of 90% of the free memory of the GPU that has least left, "
        f"rank {full}'s."
    )


def _sharing(draft: Draft) -> int:
    """Ranks that share a device's memory."""
    return 1 if draft.cuda else len(draft.ranks)


def _whole(draft: Draft, count: int) -> int:
    """A rank's bytes for a message about its device: a processor's ranks are named together."""
    return count * _sharing(draft)


def _refuse(draft: Draft, term: str, size: int, first_way: str) -> NoReturn:
    tight, ranks = draft.tightest, len(draft.ranks)
    beside = ", ".join(f"{name} {human_bytes(_whole(draft, count))}" for name, count in tight.terms if name != term)
    second_way = draft.slower or "free memory there"
    if term == "activations":
        second_way = "fewer --max-sequences or --step-tokens"
    whose = f" as {'one' if draft.cuda else 'all'} of {ranks} ranks" if ranks > 1 else ""
    raise OutOfMemoryError(
        f"The model does not fit {tight.target.label}{whose}: its {term} need {human_bytes(size)}.",
        f"{human_bytes(tight.target.usable)} can be used ({human_bytes(tight.target.free)} are free), "
        f"of which {beside} are taken.",
        f"Two ways out: {first_way}, or {second_way}.",
    )
