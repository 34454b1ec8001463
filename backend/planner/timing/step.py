"""StepTime: what one step of one stage waits for. Which steps an answer takes is `prediction`'s."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from backend.planner.fit.report import Bound
from backend.planner.timing.communication import all_reduce_seconds
from backend.planner.timing.efficiency import Efficiency, Outlook, efficiency, link_factor
from backend.planner.timing.pace import Pace, pace
from backend.planner.timing.work import RankWork, StageWork, Work
from kvcache.layout import LayerCache

# Attention multiplies at this part of what linears reach: softmax runs between its two products.
_ATTENDING = 0.7


@dataclass(frozen=True, slots=True)
class Load:
    """The tokens of a step.

    Attributes:
        sequences: that each get one token, having `positions` before it.
        prompt: tokens of prompts, which see `seen` positions on average.
        sampled: rows that the output layer computes.
    """

    sequences: float
    positions: float
    prompt: float = 0.0
    seen: float = 0.0
    sampled: float = 0.0

    @property
    def rows(self) -> float:
        return self.sequences + self.prompt


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds, by what they are spent on; they follow each other."""

    memory: float
    compute: float
    link: float
    launch: float

    @property
    def seconds(self) -> float:
        return self.memory + self.compute + self.link + self.launch

    @property
    def bound(self) -> Bound:
        """What takes most of it."""
        parts: dict[Bound, float] = {
            "memory": self.memory,
            "compute": self.compute,
            "link": self.link,
            "launch": self.launch,
        }
        return max(parts, key=lambda name: parts[name])

    def __add__(self, other: StepTime) -> StepTime:
        return StepTime(
            self.memory + other.memory,
            self.compute + other.compute,
            self.link + other.link,
            self.launch + other.launch,
        )


def stage_time(work: Work, stage: StageWork, load: Load, engine: str, outlook: Outlook = "likely") -> StepTime:
    """One stage's part of a step.

    Ranks wait for each other after attention, after MLPs and at the end, so each of these takes what the slowest takes.
    Of each, reading and multiplying run beside each other, and the longer one counts (a roofline); pages are read
    after linears have multiplied.
    """
    own_pace = pace(engine, stage.ranks[0].device.family)
    rows = [list(_phases(work, rank, load, len(stage.ranks), outlook)) for rank in stage.ranks]
    slowest = [max(phase, key=sum) for phase in zip(*rows, strict=True)]
    memory, compute = (sum(part[kind] for part in slowest) for kind in (0, 1))
    streamed = max(_streamed(rank) for rank in stage.ranks)
    link = _adding(work, stage, load, own_pace) * link_factor(outlook)
    launch = own_pace.layer_seconds(outlook) * stage.ranks[0].layers
    return StepTime(memory, compute, link + max(0.0, streamed - memory - compute), launch)


def step_overhead(work: Work, load: Load, engine: str) -> StepTime:
    """Scheduling and sampling, once a step whatever the stages."""
    own = pace(engine, work.stages[0].ranks[0].device.family)
    return StepTime(0.0, 0.0, 0.0, own.step + own.sequence * load.sequences)


def _phases(work: Work, rank: RankWork, load: Load, ranks: int, outlook: Outlook) -> Iterator[tuple[float, float]]:
    """Seconds of reading and of multiplying, one of which is 0: attention's linears, its pages, MLPs, output."""
    share, reached = rank.share, efficiency(rank.device, work.number, outlook)
    stored = _stored(rank)
    attention = share.attention_parameters + share.replicated_parameters
    yield _roofline(work, rank, reached, attention * stored, 2 * attention * load.rows)
    yield _pages(rank, load, outlook)
    columns = sum(part.parameters for part in share.columns)
    read, multiplied = _experts(work, rank, load, ranks)
    operations = 2 * columns * load.rows + multiplied / reached.experts
    yield _roofline(work, rank, reached, columns * stored + read, operations)
    output = share.output_parameters
    yield _roofline(work, rank, reached, output * rank.element, 2 * output * load.sampled)


def _roofline(work: Work, rank: RankWork, reached: Efficiency, read: float, operations: float) -> tuple[float, float]:
    reading = read / (rank.device.memory * 1e9 * reached.reading)
    multiplying = operations / (rank.device.products(work.number) * 1e12 * reached.multiplying)
    return (reading, 0.0) if reading >= multiplying else (0.0, multiplying)


def _stored(rank: RankWork) -> float:
    """Bytes of a parameter of its linears, as stored."""
    share = rank.share
    apart = share.expert_parameters if rank.expert_bytes is not None else 0
    held = rank.weight_bytes - share.vocabulary_parameters * rank.element - (rank.expert_bytes or 0)
    count = share.parameters - share.vocabulary_parameters - apart
    return max(0.0, held / count) if count > 0 else 0.0


def _experts(work: Work, rank: RankWork, load: Load, ranks: int) -> tuple[float, float]:
    """Bytes of experts that the rows pass, and operations.

    Of E experts with k active, E (1 - (1 - k/E)^rows) are passed, if all are equally likely. Where ranks have whole
    experts, the one that most rows go to is waited for: with m rows on average, about sqrt(2 m ln(ranks)) more.
    """
    share, rows = rank.share, load.rows
    if not share.experts or rows <= 0:
        return 0.0, 0.0
    stored = rank.expert_bytes / share.expert_parameters if rank.expert_bytes is not None else _stored(rank)
    read = operations = 0.0
    for part in share.experts:
        chance = min(1.0, max(1, share.active_experts) / (work.experts or part.count))
        passed = 1 - (1 - chance) ** rows
        uneven = 1.0
        if work.experts and ranks > 1:
            uneven += math.sqrt(2 * math.log(ranks) / max(1.0, rows * chance * part.count))
        read += part.parameters * min(1.0, passed * uneven) * stored
        operations += 2 * part.parameters * chance * rows * min(uneven, float(ranks))
    return read, operations


def _pages(rank: RankWork, load: Load, outlook: Outlook) -> tuple[float, float]:
    """Reading K and V (and states) of all sequences, or attention's products, whichever is longer."""
    share, reached = rank.share, efficiency(rank.device, "bf16", outlook)
    elements = sum(layer.kv_heads * (layer.key_size + layer.stored_values) for layer in share.layers)
    read = operations = 0.0
    for layer, heads in zip(share.layers, share.heads, strict=True):
        part = layer.kv_heads * (layer.key_size + layer.stored_values) / elements if elements else 0.0
        read += load.sequences * _seen(layer, load.positions) * part * rank.kv_bytes
        attended = load.sequences * _seen(layer, load.positions) + load.prompt * _seen(layer, load.seen)
        operations += 2 * heads * (layer.key_size + layer.value_size) * attended
    read += 2 * load.sequences * rank.state_bytes
    reading = read / (rank.device.memory * 1e9 * reached.reading)
    multiplying = operations / (rank.device.bf16 * 1e12 * reached.multiplying * _ATTENDING)
    return (reading, 0.0) if reading >= multiplying else (0.0, multiplying)


def _seen(layer: LayerCache, positions: float) -> float:
    return positions if layer.window is None else min(positions, layer.window)


def _streamed(rank: RankWork) -> float:
    """Seconds to copy what lies in host memory."""
    return rank.hosted_bytes / (rank.host_rate * 1e9) if rank.hosted_bytes and rank.host_rate else 0.0


def _adding(work: Work, stage: StageWork, load: Load, own: Pace) -> float:
    """Two all-reduces a layer, of a hidden state for each row."""
    ranks = len(stage.ranks)
    if ranks < 2:
        return 0.0
    count = int(load.rows * work.hidden * work.element)
    one = all_reduce_seconds(stage.link, ranks, count, own.own_all_reduce)
    return 2 * stage.ranks[0].layers * (one + (own.eager_call if stage.link is not None else 0.0))
