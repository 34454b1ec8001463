"""StepTime: what one step of one stage waits for. Which steps an answer takes is `forecast`'s."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from backend.planner.fit.report import Bound
from backend.planner.timing.communication import all_reduce_seconds
from backend.planner.timing.device_speed import DeviceSpeed, NumberKind
from backend.planner.timing.efficiency import EXPERTS_READING, Outlook, efficiency, link_factor, pages_reading, widened
from backend.planner.timing.pace import Pace
from backend.planner.timing.totals import RankTotals, StageTotals

# A layer with experts has so many more kernels, as a part of the others: it sorts rows by expert and adds them up.
_EXPERT_KERNELS = 0.8

# Seconds of reading and of multiplying.
_Part = tuple[float, float]


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


@dataclass(frozen=True, slots=True)
class Setting:
    """What all stages of a step have in common.

    Attributes:
        row_bytes: of a hidden state, as it is sent.
        number: what weights are multiplied as.
        experts: of a layer over all ranks, where each has whole ones; else 0.
    """

    pace: Pace
    row_bytes: int
    number: NumberKind
    experts: int
    outlook: Outlook


def stage_time(stage: StageTotals, load: Load, setting: Setting) -> StepTime:
    """One stage's part of a step.

    Ranks wait for each other after attention, after MLPs and at the end, so each of these takes what the slowest takes.
    Of each, reading and multiplying run beside each other, and the longer one counts (a roofline); pages are read
    after linears have multiplied.
    """
    rows = [list(_phases(rank, load, setting, stage.ranks)) for rank in stage.different]
    slowest = [max(phase, key=sum) for phase in zip(*rows, strict=True)]
    memory, compute = (sum(part[kind] for part in slowest) for kind in (0, 1))
    streamed = max(rank.streamed for rank in stage.different)
    link = _adding(stage, load, setting) * link_factor(setting.outlook)
    mixing = 1 + _EXPERT_KERNELS * stage.mixture
    launch = setting.pace.layer_seconds(setting.outlook) * stage.layers * mixing
    return StepTime(memory, compute, link + max(0.0, streamed - memory - compute), launch)


def _phases(rank: RankTotals, load: Load, setting: Setting, ranks: int) -> Iterator[_Part]:
    """Attention's linears, its pages, MLPs, output, and what lies between products."""
    device, number = rank.device, setting.number
    reached = efficiency(device, number, setting.outlook)
    read_rate = device.memory * 1e9 * reached.reading * setting.pace.reading(device.family)
    rate = device.products(number) * 1e12 * reached.multiplying
    linear_rate = read_rate * _widening(device, rank.stored, number)
    yield _longer(rank.attention * rank.stored / linear_rate, 2 * rank.attention * load.rows / rate)
    yield _pages(rank, load, read_rate * pages_reading(device), setting.outlook)
    passed, multiplied = _experts(rank, load, setting.experts, ranks)
    reading = rank.columns * rank.stored / linear_rate
    if passed:
        expert_rate = read_rate * EXPERTS_READING * _widening(device, rank.expert_stored, number)
        reading += passed * rank.expert_stored / expert_rate
    yield _longer(reading, (2 * rank.columns * load.rows + multiplied / reached.experts) / rate)
    yield _longer(rank.output * rank.element / read_rate, 2 * rank.output * load.sampled / rate)
    yield (rank.between * load.rows + rank.logits * load.sampled) / read_rate, 0.0


def _widening(device: DeviceSpeed, stored: float, number: NumberKind) -> float:
    return widened(device, 8 * stored) if device.multiplies(number) == "bf16" else 1.0


def _longer(reading: float, multiplying: float) -> _Part:
    """A roofline: what takes less runs beside the other."""
    return (reading, 0.0) if reading >= multiplying else (0.0, multiplying)


def _experts(rank: RankTotals, load: Load, whole: int, ranks: int) -> tuple[float, float]:
    """Parameters of experts that the rows pass, and operations.

    Of E experts with k active, E (1 - (1 - k/E)^rows) are passed, if all are equally likely. Where ranks have whole
    experts, the one that most rows go to is waited for: with m rows on average, about sqrt(2 m ln(ranks)) more.
    """
    passed = operations = 0.0
    for count, parameters in rank.experts if load.rows > 0 else ():
        chance = min(1.0, rank.active / (whole or count))
        uneven = 1.0
        if whole and ranks > 1:
            uneven += math.sqrt(2 * math.log(ranks) / max(1.0, load.rows * chance * count))
        passed += parameters * min(1.0, (1 - (1 - chance) ** load.rows) * uneven)
        operations += 2 * parameters * chance * load.rows * min(uneven, float(ranks))
    return passed, operations


def _pages(rank: RankTotals, load: Load, read_rate: float, outlook: Outlook) -> _Part:
    """Reading K and V (and states) of all sequences, or attention's products, whichever is longer."""
    read = 2.0 * load.sequences * rank.state_bytes
    operations = 0.0
    for pages in rank.pages:
        decoded = load.sequences * pages.seen(load.positions)
        read += decoded * pages.bytes
        operations += (decoded + load.prompt * pages.seen(load.seen)) * pages.operations
    multiplying = efficiency(rank.device, "bf16", outlook).multiplying
    return _longer(read / read_rate, operations / (rank.device.bf16 * 1e12 * multiplying))


def _adding(stage: StageTotals, load: Load, setting: Setting) -> float:
    """Two all-reduces a layer, of a hidden state for each row."""
    if stage.ranks < 2 or stage.link is None:
        return 0.0
    count = int(load.rows * setting.row_bytes)
    one = all_reduce_seconds(stage.link, stage.ranks, count, setting.pace.own_all_reduce)
    times = setting.pace.mixture_exchanges if stage.mixture else 2
    return times * stage.layers * (one + setting.pace.eager_call)
