"""StagedDraft: every stage's layers, devices and memory before the pool; what they hold and how fast they are. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from backend.planner import memory
from backend.planner.draft import Draft, Wishes
from backend.planner.fit.shape import Seat
from backend.planner.fit.stages import StagePart
from backend.planner.pool import SHORTEST_CONTEXT
from backend.planner.ranks import useful_context
from backend.planner.staged.site import Site, seconds_from_head, way_between
from backend.planner.timing.forecast import Forecast
from backend.planner.timing.prediction import ANSWER, PROMPT
from backend.planner.timing.work import Work


@dataclass(frozen=True, slots=True)
class Pool:
    """A memory in which pages of some ranks lie.

    Attributes:
        stages: that have ranks there: one of a GPU, any number of a processor.
        room: bytes left for pages; below 0 where too much is spent already.
        page_bytes: of one page, over all of these ranks.
    """

    stages: tuple[int, ...]
    room: int
    page_bytes: int


@dataclass(frozen=True, slots=True)
class StagedDraft:
    """One way to spread a model over stages.

    Attributes:
        sites: all machines, to which `seats` point.
        wishes: of the whole model.
        seats, parts, drafts: of each stage: its devices, its layers, and the memory spent before the pool.
    """

    sites: tuple[Site, ...]
    wishes: Wishes
    seats: tuple[Seat, ...]
    parts: tuple[StagePart, ...]
    drafts: tuple[Draft, ...]

    @property
    def pools(self) -> tuple[Pool, ...]:
        return tuple(self._pools())

    @property
    def page_bytes(self) -> int:
        """Of one page over all ranks of all stages."""
        return sum(draft.page_bytes for draft in self.drafts)

    @property
    def room(self) -> float:
        """Pages that the tightest memory has room for; below 0 where something does not even fit without."""
        return min(pool.room / pool.page_bytes for pool in self.pools)

    @property
    def pages(self) -> int:
        """Pages that the pool may have at most, or has, where --kv-pool says so."""
        asked = self.wishes.settings.kv_pool
        most = max(0, int(self.room))
        return most if asked is None else min(most, asked // self.page_bytes)

    @property
    def tier(self) -> int:
        """0: a sequence of a useful length for each stage, so that all have work; 1: one such; 2: a short one; 3."""
        useful = self.wishes.pages_of(useful_context(self.wishes))
        shortest = self.wishes.pages_of(min(SHORTEST_CONTEXT, self.wishes.facts.max_positions))
        for tier, wanted in enumerate((useful * len(self.drafts), useful, shortest)):
            if self.pages >= wanted:
                return tier
        return 3

    @property
    def rank(self) -> tuple[int, float]:
        """Less is better: the fastest of those that hold enough; else, the one with most room."""
        return self.tier, -self.room if self.tier > 1 else self.seconds

    @property
    def seconds(self) -> float:
        """Predicted from token to token of an answer alone, and of as many beside each other as there are stages."""
        forecast = Forecast(self.work)
        positions = PROMPT + ANSWER / 2
        alone = forecast.first_token(PROMPT) / ANSWER + forecast.token(1, positions)
        return alone + forecast.token(len(self.drafts), positions)

    @property
    def work(self) -> Work:
        """What a step reads, multiplies and sends."""
        works = [draft.work for draft in self.drafts]
        ways = tuple(way_between(self.sites, one, other) for one, other in pairwise(self.seats))
        ends = (self.sites[self.seats[0].machine], self.sites[self.seats[-1].machine])
        return replace(
            works[0],
            stages=tuple(work.stages[0] for work in works),
            ways=ways,
            returned=sum(map(seconds_from_head, ends)) if ways else 0.0,
            experts=max(work.experts for work in works),
        )

    def site(self, stage: int) -> Site:
        return self.sites[self.seats[stage].machine]

    def _pools(self) -> Iterator[Pool]:
        shared: dict[int, list[int]] = {}
        for stage, (seat, draft) in enumerate(zip(self.seats, self.drafts, strict=True)):
            if not draft.cuda:
                shared.setdefault(seat.machine, []).append(stage)
                continue
            for rank in draft.ranks:
                yield Pool((stage,), rank.target.usable - rank.spent, rank.page_bytes)
        for stages in shared.values():
            drafts = [self.drafts[stage] for stage in stages]
            spent = sum(rank.spent for draft in drafts for rank in draft.ranks)
            usable = drafts[0].ranks[0].target.usable
            yield Pool(tuple(stages), usable - spent, sum(draft.page_bytes for draft in drafts))


def with_links(draft: Draft, links: int) -> Draft:
    """The draft with what its first rank holds of messages from and to `links` neighbours, two of each."""
    wishes = draft.wishes
    held = 2 * links * wishes.step_tokens * wishes.facts.hidden * memory.ELEMENT_BYTES[wishes.dtype]
    first, *others = draft.ranks
    terms = dict(first.terms)
    terms["communication"] = terms.get("communication", 0) + held
    return replace(draft, ranks=(replace(first, terms=tuple(terms.items())), *others)) if links else draft
