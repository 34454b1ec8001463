"""choose_ranks: over which devices, and in which parts, a model is divided. The one place that decides it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from backend.engine_settings import EngineSettings
from backend.errors import SettingError
from backend.hardware.machine import Machine
from backend.planner.draft import Draft, Team, Wishes, draft
from backend.planner.groups import best_groups, group_link, speed, weights_of
from backend.planner.model_facts import ModelFacts
from backend.planner.pool import SHORTEST_CONTEXT, holds_context
from backend.planner.shares import check_ranks, choose_experts, divisible, share_out
from backend.planner.target import Target, choose_target, cpu_targets, gpu_targets
from backend.planner.timing.device_speed import processor_speed
from backend.planner.units import human_bytes

# A context that a chat fits into. Fewer GPUs that hold less are not enough, where more hold it.
USEFUL_CONTEXT = 8192
# From work in proportion to the speed of unequal GPUs to work in proportion to their memory.
_BY_MEMORY = (0.0, 0.25, 0.5, 0.75, 1.0)
# A switch adds up by itself from this compute capability on.
_ADDING_SWITCH = (9, 0)


@dataclass(frozen=True, slots=True)
class Choice:
    """The ranks, and why, in sentences."""

    draft: Draft
    reasons: tuple[str, ...]


def device_targets(settings: EngineSettings, machine: Machine) -> tuple[Target, ...]:
    """Every device that a rank could get: GPUs, or the CPU; first of all the one that a single rank gets.

    GPUs that do not multiply bfloat16 are none where the one with the most memory does, unless --tp asks for them.

    Raises SettingError where a GPU was asked for and there is none, or fewer than --tp asks.
    """
    first = choose_target(settings.device, machine)
    if not first.cuda:
        return (first,)
    count = settings.tensor_parallel or 1
    if count > len(machine.gpus):
        left = f" {machine.left_out[0].what}" if machine.left_out else ""
        raise SettingError(
            f"--tp {count} is more than the GPUs of this machine.",
            f"It has {len(machine.gpus)} that can compute.{left}",
            f"Use --tp {len(machine.gpus)} or less, or --device cpu.",
        )
    others = [target for target in gpu_targets(machine, range(len(machine.gpus))) if target.device != first.device]
    alike = [target for target in others if target.native_bfloat16 or not first.native_bfloat16]
    return (first, *(alike if count <= len(alike) + 1 else others))


def choose_ranks(wishes: Wishes, machine: Machine, targets: Sequence[Target]) -> Choice:
    """Obeys --tp, or takes the GPUs that answer fastest among those that hold the model and a useful context.

    targets: of `device_targets`.

    Raises SettingError where --tp or --experts cannot be obeyed.
    """
    settings, facts = wishes.settings, wishes.facts
    asked = settings.tensor_parallel
    if asked is not None:
        check_ranks(facts, asked)
    if not targets[0].cuda:
        return on_cpu(wishes, machine, targets[0])
    among = sorted(int(target.device.removeprefix("cuda:")) for target in targets)
    sizes = [asked] if asked is not None else _sizes(settings, facts, len(among))
    drafts = [roomiest(wishes, machine, group) for group in best_groups(machine, among, sizes)]
    chosen = _choose(drafts)
    _, experts_reason = choose_experts(settings.experts, facts, len(chosen.ranks))
    reasons = (_reason(chosen, drafts, machine, asked), *_faults(machine), experts_reason)
    return Choice(chosen, tuple(reason for reason in reasons if reason))


def on_cpu(wishes: Wishes, machine: Machine, cpu: Target) -> Choice:
    """As many processes of the processor as --tp asks, else one."""
    ranks = wishes.settings.tensor_parallel or 1
    experts, reason = choose_experts(wishes.settings.experts, wishes.facts, ranks)
    parts = (1.0,) * ranks
    speeds = (processor_speed(machine.cpu, machine.rates.memory or None, ranks),) * ranks
    team = Team(cpu_targets(cpu, ranks), speeds, parts)
    shares = share_out(wishes.facts, parts, experts, even_memory=False)  # they share one memory
    divided = f"Each layer is divided over {ranks} processes, as --tp asks." if ranks > 1 else ""
    reasons = (cpu.reason, divided, *_faults(machine), reason)
    return Choice(draft(wishes, team, shares), tuple(text for text in reasons if text))


def _sizes(settings: EngineSettings, facts: ModelFacts, most: int) -> list[int]:
    """Counts of GPUs that the model can be divided over."""
    if settings.experts == "expert":
        most = min(most, *(part.count for part in facts.experts)) if facts.experts else 1
    return [size for size in range(1, most + 1) if size <= min(facts.heads) and divisible(facts, size)]


def roomiest(wishes: Wishes, machine: Machine, group: tuple[int, ...]) -> Draft:
    """The draft whose parts follow the GPUs' speed, or as far their memory as the model and its context need it."""
    drafts: list[Draft] = []
    for one in _drafts(wishes, machine, group):
        if holds_context(one, useful_context(wishes)):
            return one
        drafts.append(one)
    return max(drafts, key=lambda one: one.roominess)


def _drafts(wishes: Wishes, machine: Machine, group: tuple[int, ...]) -> Iterator[Draft]:
    experts, _ = choose_experts(wishes.settings.experts, wishes.facts, len(group))
    link = group_link(machine, group)
    capable = all(machine.gpus[number].capability >= _ADDING_SWITCH for number in group)
    adding = capable and link is not None and link.switched
    seen: set[tuple[float, ...]] = set()
    for by_memory in _BY_MEMORY if len(group) > 1 else (0.0,):
        weights = weights_of(machine, group, by_memory)
        if weights in seen:
            continue
        seen.add(weights)
        speeds = tuple(speed(machine, number) for number in group)
        team = Team(gpu_targets(machine, group), speeds, weights, link, adding)
        yield draft(wishes, team, share_out(wishes.facts, weights, experts))


def useful_context(wishes: Wishes) -> int:
    """Positions of a sequence that the pool should have room for, at least."""
    return wishes.settings.max_context or min(USEFUL_CONTEXT, wishes.facts.max_positions)


def _choose(drafts: Sequence[Draft]) -> Draft:
    """The fastest that holds a useful context, else the roomiest."""
    wishes = drafts[0].wishes
    for context in (useful_context(wishes), min(SHORTEST_CONTEXT, wishes.facts.max_positions)):
        fitting = [one for one in drafts if holds_context(one, context)]
        if fitting:
            return _fastest(fitting) if context == useful_context(wishes) else max(fitting, key=lambda one: one.left)
    return max(drafts, key=lambda one: one.roominess)


def _fastest(drafts: Sequence[Draft]) -> Draft:
    """More GPUs as long as they save time; they come in order of their number."""
    return min(drafts, key=lambda one: one.seconds)


def _reason(chosen: Draft, drafts: Sequence[Draft], machine: Machine, asked: int | None) -> str:
    """Why these GPUs, in one sentence."""
    count, total = len(chosen.ranks), len(machine.gpus)
    if count == 1:
        target = chosen.ranks[0].target
        among = f", the most of {total} GPUs" if total > 1 else ""
        free = f"{target.label} computes: {human_bytes(target.free)} are free on it{among}"
        return f"{free}{_against(chosen, drafts)}."
    link = chosen.team.link
    joined = f"{count} of {total} GPUs compute ({_numbers(chosen)}), joined by {link.name if link else 'nothing'}"
    note = f"; {link.note}" if link and link.note else ""
    if asked is not None:
        return f"{joined}, as --tp asks{note}."
    if not any(holds_context(one, useful_context(chosen.wishes)) for one in drafts if len(one.ranks) < count):
        return f"{joined}: fewer do not hold the model and a context{note}."
    return f"{joined}{_against(chosen, drafts)}{note}."


def _numbers(chosen: Draft) -> str:
    return ", ".join(rank.target.device.removeprefix("cuda:") for rank in chosen.ranks)


def _against(chosen: Draft, drafts: Sequence[Draft]) -> str:
    """The predicted time, beside those of one size less and one more, where these were considered."""
    count = len(chosen.ranks)
    others = [one for one in drafts if one is not chosen and holds_context(one, useful_context(one.wishes))]
    fewer = [one for one in others if len(one.ranks) < count][-1:]
    more = [one for one in others if len(one.ranks) > count][:1]
    beside = [f"{_time(one)} on {len(one.ranks)}{_way(one, count)}" for one in (*fewer, *more)]
    # Its part of the prompt's time included, so it is a little more than the time from token to token.
    return f": an answer is predicted to take {_time(chosen)} a token, {', '.join(beside)}" if beside else ""


def _way(other: Draft, count: int) -> str:
    """What joins the others, where the chosen one needs no link."""
    return f" over {other.team.link.name}" if other.team.link and count == 1 else ""


def _time(one: Draft) -> str:
    return f"{one.seconds * 1000:.3g} ms"


def _faults(machine: Machine) -> tuple[str, ...]:
    return tuple(f"Left out: {fault.what}" for fault in machine.left_out)
