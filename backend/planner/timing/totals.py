"""RankTotals: a rank's share summed over its layers, once for all steps. What a step makes of it is `step`'s."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from backend.hardware.cluster import Network
from backend.planner.links import Link
from backend.planner.model_facts import ModelFacts
from backend.planner.timing.device_speed import DeviceSpeed
from backend.planner.timing.work import RankWork, StageWork

# How often a row's hidden state, its widest parts, and its copies for experts pass memory in a layer, between products:
# norms, residuals, activations, and turning them to 8 bits.
_HIDDEN_PASSES, _WIDE_PASSES, _ROUTED_PASSES = 6, 3, 1
_ELEMENT = 2
# Bytes a logit, for softmax and choosing.
_LOGIT_BYTES = 12


@dataclass(frozen=True, slots=True)
class Pages:
    """Layers that see as many positions: bytes of one that a sequence reads, and operations with one, over all."""

    window: int | None
    bytes: float
    operations: float

    def seen(self, positions: float) -> float:
        return positions if self.window is None else min(positions, self.window)


@dataclass(frozen=True, slots=True)
class RankTotals:
    """Over all layers of one rank.

    Attributes:
        attention, columns, output: parameters of linears outside of experts, of MLPs, and of the output layer.
        experts: of each kind of layer with experts: how many it has, and parameters.
        active: experts that a token passes.
        stored, expert_stored, element: bytes of a parameter of linears, of experts, and of the output layer.
        pages: what attention reads and multiplies; state_bytes: what a sequence's states take.
        between: bytes a row that pass memory between products; logits: bytes a sampled row.
        streamed: seconds to copy what lies in host memory.
    """

    device: DeviceSpeed
    attention: int
    columns: int
    output: int
    experts: tuple[tuple[int, int], ...]
    active: int
    stored: float
    expert_stored: float
    element: int
    pages: tuple[Pages, ...]
    state_bytes: int
    between: int
    logits: float
    streamed: float


@dataclass(frozen=True, slots=True)
class StageTotals:
    """One stage: its ranks that differ from each other, how many there are, and its layers."""

    different: tuple[RankTotals, ...]
    ranks: int
    layers: int
    mixture: bool
    link: Link | Network | None


def stage_totals(stage: StageWork) -> StageTotals:
    different = tuple(dict.fromkeys(_rank(rank) for rank in stage.ranks))
    first = stage.ranks[0]
    return StageTotals(different, len(stage.ranks), first.layers, bool(first.share.experts), stage.link)


def _rank(rank: RankWork) -> RankTotals:
    share = rank.share
    stored = _stored(rank)
    apart = rank.expert_bytes is not None and share.expert_parameters > 0
    return RankTotals(
        device=rank.device,
        attention=share.attention_parameters + share.replicated_parameters,
        columns=sum(part.parameters for part in share.columns),
        output=share.output_parameters,
        experts=tuple((part.count, part.parameters) for part in share.experts),
        active=max(1, share.active_experts),
        stored=stored,
        expert_stored=(rank.expert_bytes or 0) / share.expert_parameters if apart else stored,
        element=rank.element,
        pages=tuple(_pages(rank)),
        state_bytes=rank.state_bytes,
        between=_ELEMENT * rank.layers * _passed(share),
        logits=_LOGIT_BYTES * share.output_parameters / share.hidden,
        streamed=rank.hosted_bytes / (rank.host_rate * 1e9) if rank.hosted_bytes and rank.host_rate else 0.0,
    )


def _stored(rank: RankWork) -> float:
    """Bytes of a parameter of its linears: all that is neither vocabulary nor, where told apart, experts."""
    share = rank.share
    apart = share.expert_parameters if rank.expert_bytes is not None else 0
    held = rank.weight_bytes - share.vocabulary_parameters * rank.element - (rank.expert_bytes or 0)
    count = share.parameters - share.vocabulary_parameters - apart
    return max(0.0, held / count) if count > 0 else 0.0


def _pages(rank: RankWork) -> list[Pages]:
    """By window: bytes in proportion to what layers keep of a position."""
    layers = Counter(zip(rank.share.layers, rank.share.heads, strict=True))
    elements = sum(
        count * layer.kv_heads * (layer.key_size + layer.stored_values) for (layer, _), count in layers.items()
    )
    found: dict[int | None, tuple[float, float]] = {}
    for (layer, heads), count in layers.items():
        part = count * layer.kv_heads * (layer.key_size + layer.stored_values) / elements if elements else 0.0
        kept, multiplied = found.get(layer.window, (0.0, 0.0))
        multiplied += 2 * count * heads * (layer.key_size + layer.value_size)
        found[layer.window] = (kept + part * rank.kv_bytes, multiplied)
    return [Pages(window, *sums) for window, sums in found.items()]


def _passed(share: ModelFacts) -> int:
    """Elements of a row that pass memory in a layer, between products."""
    routed = max(1, share.active_experts) * share.hidden if share.experts else 0
    query = max((heads * layer.key_size for heads, layer in zip(share.heads, share.layers, strict=True)), default=0)
    return _HIDDEN_PASSES * share.hidden + _WIDE_PASSES * (share.intermediate + query) + _ROUTED_PASSES * routed
