"""StepTime: what one step of one stage waits for. Which steps an answer takes is `prediction`'s."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from backend.planner.fit.report import Bound
from backend.planner.timing.communication import all_reduce_seconds
from backend.planner.timing.device_speed import DeviceSpeed
from backend.planner.timing.efficiency import EXPERTS_READING, Outlook, efficiency, link_factor, pages_reading, widened
from backend.planner.timing.pace import Pace, pace
from backend.planner.timing.work import RankWork, StageWork, Work
from kvcache.layout import LayerCache

# How often a row's hidden state, its widest parts, and its copies for experts pass memory in a layer, between products:
# norms, residuals, activations, and turning them to 8 bits.
_HIDDEN_PASSES, _WIDE_PASSES, _ROUTED_PASSES = 6, 3, 1
# A layer with experts has so many more kernels, as a part of the others: it sorts rows by expert and adds them up.
_EXPERT_KERNELS = 0.8
# Bytes a logit, for softmax and choosing.
_LOGIT_BYTES = 12

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


def stage_time(work: Work, stage: StageWork, load: Load, engine: str, outlook: Outlook = "likely") -> StepTime:
    """One stage's part of a step.

    Ranks wait for each other after attention, after MLPs and at the end, so each of these takes what the slowest takes.
    Of each, reading and multiplying run beside each other, and the longer one counts (a roofline); pages are read
    after linears have multiplied.
    """
    own_pace = pace(engine, stage.ranks[0].device.family)
    rows = [list(_phases(work, rank, load, len(stage.ranks), own_pace, outlook)) for rank in stage.ranks]
    slowest = [max(phase, key=sum) for phase in zip(*rows, strict=True)]
    memory, compute = (sum(part[kind] for part in slowest) for kind in (0, 1))
    streamed = max(_streamed(rank) for rank in stage.ranks)
    link = _adding(work, stage, load, own_pace) * link_factor(outlook)
    mixing = 1 + _EXPERT_KERNELS * bool(stage.ranks[0].share.experts)
    launch = own_pace.layer_seconds(outlook) * stage.ranks[0].layers * mixing
    return StepTime(memory, compute, link + max(0.0, streamed - memory - compute), launch)


def step_overhead(work: Work, load: Load, engine: str) -> StepTime:
    """Scheduling and sampling, once a step whatever the stages."""
    own = pace(engine, work.stages[0].ranks[0].device.family)
    return StepTime(0.0, 0.0, 0.0, own.step + own.sequence * load.sequences)


def _phases(work: Work, rank: RankWork, load: Load, ranks: int, engine: Pace, outlook: Outlook) -> Iterator[_Part]:
    """Attention's linears, its pages, MLPs, output, and what lies between products."""
    share, device = rank.share, rank.device
    reached = efficiency(device, work.number, outlook)
    read_rate = device.memory * 1e9 * reached.reading * engine.reading(device.family)
    rate = device.products(work.number) * 1e12 * reached.multiplying
    stored, narrow = _stored(rank), device.multiplies(work.number) == "bf16"
    linear_rate = read_rate * _widening(device, stored, narrow)
    attention = share.attention_parameters + share.replicated_parameters
    yield _longer(attention * stored / linear_rate, 2 * attention * load.rows / rate)
    yield _pages(rank, load, read_rate * pages_reading(device), outlook)
    columns = sum(part.parameters for part in share.columns)
    expert_stored = _expert_stored(rank)
    passed, multiplied = _experts(work, rank, load, ranks)
    reading = columns * stored / linear_rate
    reading += passed * expert_stored / (read_rate * EXPERTS_READING * _widening(device, expert_stored, narrow))
    yield _longer(reading, (2 * columns * load.rows + multiplied / reached.experts) / rate)
    output = share.output_parameters
    yield _longer(output * rank.element / read_rate, 2 * output * load.sampled / rate)
    yield _activations(rank, load) / read_rate, 0.0


def _widening(device: DeviceSpeed, stored: float, narrow: bool) -> float:
    return widened(device, 8 * stored) if narrow else 1.0


def _longer(reading: float, multiplying: float) -> _Part:
    """A roofline: what takes less runs beside the other."""
    return (reading, 0.0) if reading >= multiplying else (0.0, multiplying)


def _activations(rank: RankWork, load: Load) -> float:
    """Bytes that norms, activations, routing and sampling read and write between products."""
    share, layers = rank.share, rank.layers
    routed = max(1, share.active_experts) * share.hidden if share.experts else 0
    query = max((heads * layer.key_size for heads, layer in zip(share.heads, share.layers, strict=True)), default=0)
    passed = _HIDDEN_PASSES * share.hidden + _WIDE_PASSES * (share.intermediate + query) + _ROUTED_PASSES * routed
    return 2 * layers * load.rows * passed + _LOGIT_BYTES * share.vocabulary * load.sampled


def _stored(rank: RankWork) -> float:
    """Bytes of a parameter of its linears, as stored."""
    share = rank.share
    apart = share.expert_parameters if rank.expert_bytes is not None else 0
    held = rank.weight_bytes - share.vocabulary_parameters * rank.element - (rank.expert_bytes or 0)
    count = share.parameters - share.vocabulary_parameters - apart
    return max(0.0, held / count) if count > 0 else 0.0


def _expert_stored(rank: RankWork) -> float:
    if rank.expert_bytes is None or not rank.share.expert_parameters:
        return _stored(rank)
    return rank.expert_bytes / rank.share.expert_parameters


def _experts(work: Work, rank: RankWork, load: Load, ranks: int) -> tuple[float, float]:
    """Parameters of experts that the rows pass, and operations.

    Of E experts with k active, E (1 - (1 - k/E)^rows) are passed, if all are equally likely. Where ranks have whole
    experts, the one that most rows go to is waited for: with m rows on average, about sqrt(2 m ln(ranks)) more.
    """
    share, rows = rank.share, load.rows
    passed = operations = 0.0
    for part in share.experts if rows > 0 else ():
        chance = min(1.0, max(1, share.active_experts) / (work.experts or part.count))
        uneven = 1.0
        if work.experts and ranks > 1:
            uneven += math.sqrt(2 * math.log(ranks) / max(1.0, rows * chance * part.count))
        passed += part.parameters * min(1.0, (1 - (1 - chance) ** rows) * uneven)
        operations += 2 * part.parameters * chance * rows * min(uneven, float(ranks))
    return passed, operations


def _pages(rank: RankWork, load: Load, read_rate: float, outlook: Outlook) -> _Part:
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
    return _longer(read / read_rate, operations / (rank.device.bf16 * 1e12 * reached.multiplying))


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
    times = own.mixture_exchanges if stage.ranks[0].share.experts else 2
    return times * stage.ranks[0].layers * (one + (own.eager_call if stage.link is not None else 0.0))
