"""Which layers' weights lie in host memory, what that frees of GPUs, and what a step then costs at least. Pure.

Two buffers on each GPU take turns; each has every second of these layers. How they travel is `layer_stream`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from backend.errors import OutOfMemoryError, SettingError
from backend.hardware.machine import Machine
from backend.planner import memory, tiers
from backend.planner.draft import Draft, RankDraft
from backend.planner.links import host_bandwidth
from backend.planner.plan import HostedLayers
from backend.planner.pool import SHORTEST_CONTEXT, holds_context
from backend.planner.ranks import useful_context
from backend.planner.units import human_bytes

# Buffers on a device, and the fewest layers that take more there than these.
BUFFERS = 2
_FEWEST = BUFFERS + 1


def host_layers(plain: Draft, machine: Machine) -> Draft:
    """The draft with as many layers in host memory as --host-weights asks; auto takes as few as make room for a
    context. Without layers there, it tells refusals whether that would help.

    Raises SettingError for what cannot be obeyed, and OutOfMemoryError where host memory is too small for it.
    """
    asked = plain.wishes.settings.host_weights
    if not plain.cuda:
        if asked:
            raise SettingError(
                "--host-weights needs a GPU.",
                "Where the CPU computes, all weights lie in main memory anyway.",
                "Leave --host-weights away.",
            )
        return plain
    if asked:
        chosen = _up_to(plain, machine, asked)
    elif _fits(plain, _least(plain) if asked == 0 else useful_context(plain.wishes)):
        return plain
    else:
        found = _fewest(plain, machine)
        if asked == 0:
            return plain if found is None or _short(found, machine) else replace(plain, slower=_offer(found))
        chosen = found or plain
    _check_host(chosen, machine)
    return chosen


def reason(draft: Draft) -> str:
    """What lies in host memory and what it costs, in two sentences; empty where nothing does."""
    hosted = draft.hosted
    if hosted is None:
        return ""
    asked = draft.wishes.settings.host_weights
    why = "as --host-weights asks" if asked else "because the model does not fit otherwise"
    gpus = "the GPU" if len(draft.ranks) == 1 else "the GPUs"
    return (
        f"{len(hosted.layers)} of {hosted.among} layers lie in host memory, {why}: {human_bytes(hosted.host_bytes)} "
        f"there, {human_bytes(max(0, hosted.freed_bytes))} less on {gpus}. {cost(hosted)}."
    )


def cost(hosted: HostedLayers) -> str:
    """What each step copies and takes."""
    return (
        f"Each step copies {human_bytes(hosted.step_bytes)}, which takes at least {_time(hosted.seconds)} at "
        f"{hosted.rate:.3g} GB/s for each GPU (assumed: four fifths of what its PCIe is built for)"
    )


def spread(count: int, total: int) -> tuple[int, ...]:
    """`count` of `total` layers, as far from each other as can be: copies then run beside the layers in between."""
    return tuple((2 * number + 1) * total // (2 * count) for number in range(count))


def _up_to(plain: Draft, machine: Machine, size: int) -> Draft:
    """As many layers as `size` bytes of host memory hold, over all ranks."""
    drafts = list(_drafts(plain, machine))
    if not drafts:
        raise SettingError(
            "--host-weights cannot serve this model.",
            f"It has {len(plain.wishes.facts.layer_parameters)} layers that could lie in host memory, and two of them "
            "are on the GPU at any time.",
            "Leave --host-weights away.",
        )
    chosen = [one for one in drafts if _hosted(one).host_bytes <= size]
    if not chosen:
        least = -(-_hosted(drafts[0]).host_bytes >> 20)
        raise SettingError(
            f"--host-weights {human_bytes(size)} is too small.",
            f"Two layers are on the GPU at any time, so {_FEWEST} are the fewest that help: {least} MiB.",
            f"Use --host-weights {least}MiB or more, or auto.",
        )
    return chosen[-1]


def _fewest(plain: Draft, machine: Machine) -> Draft | None:
    """With the fewest layers that leave room for a useful context, else for any; None where no number does."""
    held, rates = _layers_held(plain), _rates(plain, machine)
    unlike = {
        (id(bytes_), rank.terms, rank.target.usable): (rank, bytes_)
        for rank, bytes_ in zip(plain.ranks, held, strict=True)
    }
    for context in (useful_context(plain.wishes), _least(plain)):
        pages = plain.wishes.pages_of(context)
        for layers in _spreads(plain):
            if any(_room(rank, bytes_, layers) < pages * rank.page_bytes for rank, bytes_ in unlike.values()):
                continue
            found = _with(plain, layers, held, rates)
            if _fits(found, context):
                return found
    return None


def _drafts(plain: Draft, machine: Machine) -> Iterator[Draft]:
    """With ever more layers in host memory."""
    held, rates = _layers_held(plain), _rates(plain, machine)
    return (_with(plain, layers, held, rates) for layers in _spreads(plain))


def _spreads(plain: Draft) -> Iterator[tuple[int, ...]]:
    total = len(plain.wishes.facts.layer_parameters)
    return (spread(count, total) for count in range(_FEWEST, total + 1))


def _layers_held(plain: Draft) -> list[tuple[int, ...]]:
    """Each rank's bytes of every layer; ranks that have alike share one value."""
    made: dict[tuple[int, int], tuple[int, ...]] = {}
    keys = [(id(rank.facts), rank.terms[0][1]) for rank in plain.ranks]
    for key, rank in zip(keys, plain.ranks, strict=True):
        if key not in made:
            made[key] = tuple(_layer_bytes(plain, rank))
    return [made[key] for key in keys]


def _rates(plain: Draft, machine: Machine) -> list[float]:
    """GB/s from host memory to each rank's GPU."""
    gpus = [machine.gpus[int(rank.target.device.removeprefix("cuda:"))] for rank in plain.ranks]
    return [host_bandwidth(gpu, machine.rates) for gpu in gpus]


def _room(rank: RankDraft, held: Sequence[int], layers: Sequence[int]) -> int:
    """What `_with` would leave of the rank's device."""
    bytes_ = [held[layer] for layer in layers]
    buffers = sum(max(bytes_[first::BUFFERS]) for first in range(BUFFERS))
    return rank.target.usable - rank.spent + sum(bytes_) - buffers


def _with(plain: Draft, layers: tuple[int, ...], held: Sequence[Sequence[int]], rates: Sequence[float]) -> Draft:
    """held: each rank's bytes of every layer; rates: GB/s from host memory to its GPU."""
    ranks: list[RankDraft] = []
    host = freed = step = 0
    seconds = 0.0
    for rank, bytes_, rate in zip(plain.ranks, held, rates, strict=True):
        rings = [[bytes_[layer] for layer in layers[first::BUFFERS]] for first in range(BUFFERS)]
        moved, buffers = sum(map(sum, rings)), sum(map(max, rings))
        # A ring of one layer keeps it.
        copied = sum(sum(ring) for ring in rings if len(ring) > 1)
        (name, weights), *others = rank.terms
        ranks.append(replace(rank, terms=((name, weights - moved), *others, ("streaming", buffers))))
        host, freed, step = host + moved, freed + moved - buffers, step + copied
        seconds = max(seconds, copied / (rate * 1e9))
    hosted = HostedLayers(
        layers, len(plain.wishes.facts.layer_parameters), host, freed, step, round(min(rates), 2), round(seconds, 6)
    )
    return replace(plain, ranks=tuple(ranks), hosted=hosted)


def _layer_bytes(draft: Draft, rank: RankDraft) -> list[int]:
    """The rank's bytes of every layer: what its weights take beside the vocabulary's, by the layers' parameters."""
    facts = draft.wishes.facts
    inside = sum(facts.layer_parameters)
    outside = facts.parameters - inside - facts.vocabulary_parameters + rank.facts.vocabulary_parameters
    held = max(0, dict(rank.terms)["weights"] - outside * memory.ELEMENT_BYTES[draft.wishes.dtype])
    return [held * parameters // inside for parameters in facts.layer_parameters]


def _fits(one: Draft, context: int) -> bool:
    asked = one.wishes.settings.kv_pool
    return holds_context(one, context) and (asked is None or asked <= one.left)


def _least(one: Draft) -> int:
    return one.wishes.settings.max_context or min(SHORTEST_CONTEXT, one.wishes.facts.max_positions)


def _short(one: Draft, machine: Machine) -> int:
    """Bytes that host memory is short of; 0 where it holds the layers. While loading, a layer is there twice."""
    hosted, ranks = _hosted(one), len(one.ranks)
    room = tiers.host_room(machine.memory.available, ranks * memory.LIBRARIES_BESIDE_GPU)
    largest = hosted.host_bytes // len(hosted.layers) + 1
    return max(0, hosted.host_bytes + largest - room)


def _check_host(one: Draft, machine: Machine) -> None:
    if one.hosted is None or not _short(one, machine):
        return
    raise OutOfMemoryError(
        f"The layers do not fit main memory: they need {human_bytes(one.hosted.host_bytes)} there.",
        f"{human_bytes(machine.memory.available)} are free, of which a tenth stays free, and "
        f"{human_bytes(len(one.ranks) * memory.LIBRARIES_BESIDE_GPU)} are the libraries'.",
        f"Two ways out: {'' if one.wishes.weight_format == 'nf4' else '--weights nf4 or '}a smaller model, or free "
        "memory there.",
    )


def _offer(found: Draft) -> str:
    hosted = _hosted(found)
    return (
        f"--host-weights auto ({len(hosted.layers)} of {hosted.among} layers in host memory: a step then takes "
        f"{_time(hosted.seconds)} or more)"
    )


def _hosted(one: Draft) -> HostedLayers:
    if one.hosted is None:
        raise ValueError("no layer of this draft lies in host memory")
    return one.hosted


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"
