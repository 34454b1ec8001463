"""settle_stages: a StagedDraft with its pool and context, as the Plan that is run. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from dataclasses import replace as changed

from msgspec.structs import replace

from backend.errors import SettingError
from backend.layer_span import LayerSpan
from backend.parallel.division import ExpertDivision
from backend.planner import memory, tiers
from backend.planner.decide import ranks_of_draft, token_bytes
from backend.planner.draft import Draft, with_host
from backend.planner.plan import Plan, Rank, Stage
from backend.planner.pool import CPU_POOL_SHARE, SHORTEST_CONTEXT
from backend.planner.staged.draft import Pool, StagedDraft
from backend.planner.staged.reasons import reasons
from backend.planner.staged.refusals import pool_too_large, pool_too_small, too_small
from backend.planner.staged.site import Site
from backend.planner.units import human_bytes


@dataclass(frozen=True, slots=True)
class Explained:
    """Sentences of whoever chose: before those of the stages and the pool, and after."""

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


def settle_stages(staged: StagedDraft, explained: Explained) -> Plan:
    """Raises OutOfMemoryError where some stage leaves no room, SettingError for tiers or threads that cannot be."""
    wishes, settings = staged.wishes, staged.wishes.settings
    host_pages, host_reason = _host_pages(staged)
    staged = changed(staged, drafts=tuple(with_host(draft, host_pages) for draft in staged.drafts))
    pages, pool_reason = _pages(staged)
    context, context_reason = _context(staged, pages)
    threads = _threads(staged)
    stages = tuple(_stages(staged, threads))
    head = staged.sites[0].machine
    return Plan(
        model=settings.files.name,
        architecture=wishes.facts.architecture,
        dtype=wishes.dtype,
        weight_format=wishes.weight_format,
        kv_format=str(wishes.layout.formats),
        tensor_parallel=stages[0].ranks,
        pipeline_stages=len(stages),
        ranks=tuple(_ranks(staged, pages)),
        max_context=context,
        max_sequences=wishes.max_sequences,
        step_tokens=wishes.step_tokens,
        page_tokens=wishes.layout.groups[0].page_tokens,
        page_bytes=staged.page_bytes,
        pages=pages,
        token_bytes=sum(token_bytes(draft) for draft in staged.drafts),
        host_pages=host_pages,
        disk_bytes=0,
        cache_dir="",
        threads=sum(threads),
        reasons=tuple(
            text
            for text in (
                *explained.before, *reasons(staged), pool_reason, host_reason, context_reason,
                wishes.facts.positions_reason, *explained.after, _threads_reason(staged, threads),
            )
            if text
        ),
        experts=_experts(staged),
        visible_gpus=tuple(gpu.uuid for gpu in head.gpus) if any(stage.visible_gpus for stage in stages) else (),
        peer_writes=all(stage.peer_writes for stage in stages),
        stages=stages,
    )  # fmt: skip


def stage_of(draft: Draft, site: Site, span: LayerSpan, threads: int) -> Stage:
    """The stage as the Plan tells of it."""
    link = draft.team.link
    machine = site.machine
    return Stage(
        peer=site.id,
        name=site.name,
        span=span,
        ranks=len(draft.ranks),
        threads=threads,
        visible_gpus=tuple(gpu.uuid for gpu in machine.gpus) if draft.cuda else (),
        peer_writes=link is None or link.kind != "host",
    )


def _stages(staged: StagedDraft, threads: Sequence[int]) -> Iterator[Stage]:
    for number, (part, draft) in enumerate(zip(staged.parts, staged.drafts, strict=True)):
        site = staged.site(number)
        span = LayerSpan(part.first, part.stop, part.of, part.slots.start, part.slots.stop)
        yield stage_of(draft, site, span, threads[number])


def _ranks(staged: StagedDraft, pages: int) -> Iterator[Rank]:
    first = 0
    for number, draft in enumerate(staged.drafts):
        for rank in ranks_of_draft(draft, staged.site(number).machine, pages):
            yield replace(rank, rank=first + rank.rank)
        first += len(draft.ranks)


def _experts(staged: StagedDraft) -> ExpertDivision:
    """Stages of one rank have nothing to divide; all others have been told to do it alike."""
    for draft in staged.drafts:
        if len(draft.ranks) > 1:
            return draft.shares.experts
    return "tensor"


def _pages(staged: StagedDraft) -> tuple[int, str]:
    asked, most = staged.wishes.settings.kv_pool, int(staged.room)
    if staged.tier > 2 and (asked is None or most < 1):
        raise too_small(staged)
    if asked is not None:
        if asked // staged.page_bytes > most:
            raise pool_too_large(staged, asked)
        return asked // staged.page_bytes, f"The page pools of all stages take {human_bytes(asked)}, as --kv-pool asks."
    wishes = staged.wishes
    wanted = wishes.pages_of(wishes.settings.max_context or wishes.facts.max_positions)
    limits = [_limit(staged, pool, wanted) for pool in staged.pools]
    pages = min(limits)
    tight = staged.pools[limits.index(pages)].stages[0]
    if pages == wishes.max_sequences * wanted:
        return pages, f"The page pools hold {wishes.max_sequences} sequences of the longest context."
    return pages, (
        f"All stages have {pages:,} pages, as many as the one with the least room for them: stage {tight + 1} on "
        f"{staged.site(tight).name}, {human_bytes(pages * staged.drafts[tight].page_bytes)}."
    )


def _limit(staged: StagedDraft, pool: Pool, wanted: int) -> int:
    """What a processor's main memory is free for is somebody's desktop too: a part, or what was asked."""
    draft, most = staged.drafts[pool.stages[0]], pool.room // pool.page_bytes
    if draft.cuda:
        return most
    share = int(draft.ranks[0].target.free * CPU_POOL_SHARE) // pool.page_bytes
    if staged.wishes.settings.max_context is not None:
        share = max(share, wanted)
    return min(share, staged.wishes.max_sequences * wanted, most)


def _context(staged: StagedDraft, pages: int) -> tuple[int, str]:
    wishes, asked = staged.wishes, staged.wishes.settings.max_context
    most = wishes.facts.max_positions
    holds = memory.context_of_pages(wishes.layout, pages, wishes.step_tokens, most)
    least = asked or min(SHORTEST_CONTEXT, most)
    if holds < least:
        pool = wishes.settings.kv_pool
        raise too_small(staged) if pool is None else pool_too_small(staged, pool, least)
    if asked is not None:
        return asked, f"The context is {asked}, as --max-context asks."
    if holds == most:
        own = "" if wishes.facts.positions_reason else "the model's own, "
        return holds, f"The context is {own}{holds}."
    return holds, f"The context is {holds} of the model's {most}: the pools hold no more."


def _host_pages(staged: StagedDraft) -> tuple[int, str]:
    """Pages of the host tier: counted alike on all stages, as many as the machine with the least memory holds."""
    settings = staged.wishes.settings
    asked = settings.host_cache
    if asked == 0 or (asked is None and not all(draft.cuda for draft in staged.drafts)):
        return 0, ""
    if asked is not None and asked < staged.page_bytes:
        raise SettingError(
            f"--host-cache {asked} is too small.",
            f"A page of this model takes {human_bytes(staged.page_bytes)} over all stages.",
            f"Use --host-cache {-(-staged.page_bytes >> 20)}MiB or more, or 0 for none.",
        )
    here: dict[int, list[Draft]] = {}
    for seat, draft in zip(staged.seats, staged.drafts, strict=True):
        here.setdefault(seat.machine, []).append(draft)
    if asked is not None:
        pages = asked // staged.page_bytes
        for number, drafts in here.items():
            machine = staged.sites[number].machine
            tiers.check_host_memory(pages * _page_bytes(drafts), machine.memory.available, _taken(drafts))
        return pages, f"The host caches of all stages have {human_bytes(asked)}, as --host-cache asks."
    pages = min(
        tiers.host_pages(settings, staged.sites[number].machine, drafts[0].ranks[0].target, _page_bytes(drafts))[0]
        for number, drafts in here.items()
    )
    size = human_bytes(pages * staged.page_bytes)
    return pages, f"The host caches take {size} over all stages, at most a tenth of any machine's free main memory."


def _page_bytes(drafts: Sequence[Draft]) -> int:
    return sum(draft.page_bytes for draft in drafts)


def _taken(drafts: Sequence[Draft]) -> int:
    """Bytes of main memory beside pages."""
    ranks = [rank for draft in drafts for rank in draft.ranks]
    return sum(memory.LIBRARIES_BESIDE_GPU if rank.target.cuda else rank.spent for rank in ranks)


def _threads(staged: StagedDraft) -> list[int]:
    """Of each stage: a machine's processor is divided over the stages that compute on it."""
    asked = staged.wishes.settings.threads
    found: list[int] = []
    for number, draft in enumerate(staged.drafts):
        sharing = [one for one, seat in enumerate(staged.seats) if seat == staged.seats[number]]
        cpu = staged.site(number).machine.cpu
        if draft.cuda:
            found.append(1)
            continue
        if asked is not None and asked > cpu.threads:
            raise SettingError(
                f"--threads {asked} is more than {staged.site(number).name} may use.",
                f"It has {cpu.threads} logical processors, and the setting counts for each machine.",
                f"Use --threads {cpu.usable_cores}, one for each physical core.",
            )
        whole = asked or cpu.usable_cores
        # What does not divide goes to the first of them.
        found.append(max(1, whole // len(sharing) + (sharing.index(number) < whole % len(sharing))))
    return found


def _threads_reason(staged: StagedDraft, threads: Sequence[int]) -> str:
    counts = [count for count, draft in zip(threads, staged.drafts, strict=True) if not draft.cuda]
    if not counts:
        return ""
    each = f"{counts[0]}" if len(set(counts)) == 1 else " and ".join(map(str, counts))
    why = "as --threads asks of each machine" if staged.wishes.settings.threads else "by their machines' cores"
    noun = "thread" if set(counts) == {1} else "threads"
    return f"Stages on processors compute with {each} {noun} each, {why}."
