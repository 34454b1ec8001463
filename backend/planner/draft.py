"""Draft: a Plan before its pool: what is asked of which model and devices, and the memory already spent. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from backend.engine_settings import EngineSettings
from backend.planner import memory
from backend.planner.links import Link
from backend.planner.model_facts import ModelFacts
from backend.planner.plan import HostedLayers
from backend.planner.shares import Shares, of_ranks
from backend.planner.target import Target
from backend.planner.timing.device_speed import DeviceSpeed, NumberKind
from backend.planner.timing.prediction import answer_seconds
from backend.planner.timing.work import RankWork, StageWork, Work
from kvcache.layout import CacheLayout, rank_layout

# What formats' weights are multiplied as; the others are widened.
_NUMBERS: dict[str, NumberKind] = {"int8": "int8", "fp8": "fp8"}


@dataclass(frozen=True, slots=True)
class Wishes:
    """What every draft of one decision shares: the settings as far as they are resolved, and the model.

    Attributes:
        layout: of the whole model's pages.
        weights: bytes of the whole model's, once loaded.
        weight_format: how they are stored.
        outputs: whether the model's last layer is among these, so that a rank has logits and samples.
    """

    settings: EngineSettings
    facts: ModelFacts
    layout: CacheLayout
    dtype: str
    step_tokens: int
    max_sequences: int
    weights: int
    weight_format: str = "model"
    outputs: bool = True

    def pages_of(self, tokens: int) -> int:
        return memory.pages_of_context(self.layout, tokens, self.step_tokens)


@dataclass(frozen=True, slots=True)
class Team:
    """The devices of a draft, one a rank, and what joins them.

    Attributes:
        speeds: each device's.
        weights: each rank's part of the work, relative.
        link: None for one rank, and between processes of a CPU.
        switched: whether the link is a switch that adds up itself.
    """

    targets: tuple[Target, ...]
    speeds: tuple[DeviceSpeed, ...]
    weights: tuple[float, ...]
    link: Link | None = None
    switched: bool = False


@dataclass(frozen=True, slots=True)
class RankDraft:
    """One rank: its device, its share of the model and of a page, and the memory spent before the pool."""

    target: Target
    facts: ModelFacts
    page_bytes: int
    terms: tuple[tuple[str, int], ...]

    @property
    def spent(self) -> int:
        return sum(count for _, count in self.terms)


@dataclass(frozen=True, slots=True)
class Draft:
    """All ranks. `host_pages` lie in main memory: a processor's ranks have a term for them, a GPU's do not.

    `hosted` layers do so, too; `slower` is for a refusal: the setting that would have them there, and its cost.
    """

    wishes: Wishes
    team: Team
    shares: Shares
    ranks: tuple[RankDraft, ...]
    host_pages: int = 0
    hosted: HostedLayers | None = None
    slower: str = ""

    @property
    def cuda(self) -> bool:
        return self.ranks[0].target.cuda

    @property
    def page_bytes(self) -> int:
        """Of one page over all ranks."""
        return sum(rank.page_bytes for rank in self.ranks)

    @property
    def left(self) -> int:
        """Bytes that the pool may take, over all ranks; below 0 where a device is too small for its ranks."""
        rooms = self._rooms()
        room, page_bytes = min(rooms, key=lambda one: one[0] / one[1])
        return room if len(rooms) == 1 else room // page_bytes * self.page_bytes

    @property
    def roominess(self) -> tuple[bool, int]:
        """Greater is better: bytes for the pool, or, where there are none, what the fullest device is short of."""
        least = min(room for room, _ in self._rooms())
        return (True, self.left) if least > 0 else (False, least)

    @property
    def tightest(self) -> RankDraft:
        """The rank whose device has the least room for pages."""
        return min(self.ranks, key=lambda rank: (rank.target.usable - rank.spent) / rank.page_bytes)

    @property
    def seconds(self) -> float:
        """Predicted from token to token of one typical answer, its part of the prompt's time included."""
        return answer_seconds(self.work)

    @property
    def work(self) -> Work:
        """What a step of it reads, multiplies and sends."""
        wishes = self.wishes
        element = memory.ELEMENT_BYTES[wishes.dtype]
        copied = self.hosted.step_bytes // len(self.ranks) if self.hosted else 0
        ranks = tuple(
            RankWork(
                rank.facts,
                speed,
                weight_bytes=wishes.weights * rank.facts.parameters // wishes.facts.parameters,
                kv_bytes=rank_layout(wishes.layout, rank.facts.layers).bytes_per_token,
                element=element,
                hosted_bytes=copied,
                host_rate=self.hosted.rate if self.hosted else 0.0,
            )
            for rank, speed in zip(self.ranks, self.team.speeds, strict=True)
        )
        whole = max((part.count for part in wishes.facts.experts), default=0)
        return Work(
            (StageWork(ranks, self.team.link),),
            wishes.facts.hidden,
            element=element,
            number=_NUMBERS.get(wishes.weight_format, "bf16"),
            experts=whole if self.shares.experts == "expert" else 0,
        )

    def _rooms(self) -> list[tuple[int, int]]:
        """What each device has left, and its ranks' bytes of a page: ranks of a processor share one memory."""
        if self.cuda:
            return [(rank.target.usable - rank.spent, rank.page_bytes) for rank in self.ranks]
        return [(self.ranks[0].target.usable - sum(rank.spent for rank in self.ranks), self.page_bytes)]


def draft(wishes: Wishes, team: Team, shares: Shares) -> Draft:
    """Raises ValueError where the model cannot be divided so."""
    facts = of_ranks(wishes.facts, shares)
    ranks = tuple(_rank(wishes, team, own, number) for number, own in enumerate(facts))
    return Draft(wishes, team, shares, ranks)


def with_host(plain: Draft, host_pages: int) -> Draft:
    """The draft beside a host cache; on a processor, it takes from what the pool may have."""
    if plain.cuda or not host_pages:
        return replace(plain, host_pages=host_pages)
    ranks = tuple(
        RankDraft(rank.target, rank.facts, rank.page_bytes, (*rank.terms, ("host cache", host_pages * rank.page_bytes)))
        for rank in plain.ranks
    )
    return replace(plain, ranks=ranks, host_pages=host_pages)


def _rank(wishes: Wishes, team: Team, own: ModelFacts, number: int) -> RankDraft:
    target, several = team.targets[number], len(team.targets) > 1
    tokens, cuda = wishes.step_tokens, target.cuda
    sequences = wishes.max_sequences if wishes.outputs else 0
    terms: Sequence[tuple[str, int]] = (
        ("weights", wishes.weights * own.parameters // wishes.facts.parameters),
        (
            "activations",
            memory.activation_bytes(own, wishes.dtype, tokens, sequences, cuda, samples=number == 0)
            + memory.product_bytes(wishes.facts, wishes.dtype, wishes.weight_format, cuda),
        ),
        ("libraries", memory.libraries_bytes(wishes.weight_format, cuda)),
    )
    if several:
        held = memory.communication_bytes(own.hidden, wishes.dtype, tokens, cuda, team.switched)
        terms = (*terms, ("communication", held))
    return RankDraft(target, own, rank_layout(wishes.layout, own.layers).page_bytes, tuple(terms))
