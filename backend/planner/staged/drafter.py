"""Drafter: makes StagedDrafts of one model on some machines, and remembers what it has drafted. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from msgspec.structs import replace as changed

from backend.engine_settings import EngineSettings
from backend.hardware.machine import Machine
from backend.planner import memory
from backend.planner.draft import Draft, Wishes
from backend.planner.fit.shape import Seat
from backend.planner.fit.stages import StagePart, cut, cut_at
from backend.planner.kv_choice import KVChoice
from backend.planner.model_facts import ModelFacts
from backend.planner.prepare import wish
from backend.planner.ranks import on_cpu, roomiest
from backend.planner.shares import choose_experts
from backend.planner.staged.draft import StagedDraft, with_links
from backend.planner.staged.site import Site
from backend.planner.target import Target, choose_target, gpu_targets
from kvcache.layout import stage_layout


@dataclass(frozen=True, slots=True)
class Grounds:
    """What all stages of one seating share.

    Attributes:
        processor, gpu: wishes of the whole model, where the weights lie on one or the other.
        mixed: whether there are both.
        reasons: why this dtype, these formats of K and V, and this step.
        experts: why they are divided so.
    """

    processor: Wishes
    gpu: Wishes
    mixed: bool
    reasons: tuple[str, str, str]
    experts: str

    def of(self, seat: Seat) -> Wishes:
        return self.gpu if seat.gpus else self.processor

    @property
    def element(self) -> int:
        return memory.ELEMENT_BYTES[self.gpu.dtype]


class Drafter:
    """For one format of weights; its methods are pure but for what they remember."""

    def __init__(
        self,
        settings: EngineSettings,
        facts: ModelFacts,
        sites: Sequence[Site],
        weights: str,
        measured: KVChoice | None = None,
    ) -> None:
        self.settings = settings
        self.facts = facts
        self.sites = tuple(sites)
        self.weights = weights
        self._measured = measured
        self._grounds: dict[object, Grounds] = {}
        self._drafts: dict[object, Draft] = {}

    def by_rooms(self, seats: Sequence[Seat], rooms: Sequence[float]) -> StagedDraft:
        """Weights in proportion to `rooms`. Raises ValueError where the model cannot be cut or divided so."""
        grounds = self.grounds(seats)
        whole = grounds.of(seats[0])
        parts = cut(self.facts, whole.weights, grounds.element, rooms)
        return self.at_edges(seats, (0, *(part.stop for part in parts)))

    def at_edges(self, seats: Sequence[Seat], edges: Sequence[int]) -> StagedDraft:
        """Layers between these edges. Raises ValueError where the model cannot be cut or divided so."""
        grounds = self.grounds(seats)
        # Weights take other bytes on a processor than on a GPU.
        kinds = {bool(seat.gpus): seat for seat in seats}
        cuts = {
            kind: cut_at(self.facts, grounds.of(seat).weights, grounds.element, edges) for kind, seat in kinds.items()
        }
        parts = tuple(cuts[bool(seat.gpus)][stage] for stage, seat in enumerate(seats))
        sharing = Counter(seat.machine for seat in seats if not seat.gpus)
        drafts = tuple(
            self._draft(grounds, seat, part, sharing[seat.machine], _links(stage, len(seats)))
            for stage, (seat, part) in enumerate(zip(seats, parts, strict=True))
        )
        return StagedDraft(self.sites, grounds.of(seats[0]), tuple(seats), parts, drafts)

    def one(self, seat: Seat, edges: Sequence[int], stage: int, sharing: int = 1) -> Draft:
        """One stage alone on a seat, of the stages between these edges; `sharing`: stages on its processor.

        Raises ValueError where the model cannot be divided so.
        """
        grounds = self.grounds([seat])
        part = cut_at(self.facts, grounds.of(seat).weights, grounds.element, edges)[stage]
        return self._draft(grounds, seat, part, sharing, _links(stage, len(edges) - 1))

    def grounds(self, seats: Sequence[Seat]) -> Grounds:
        targets = [target for seat in seats for target in self.targets(seat)]
        ranks = self.settings.tensor_parallel or max(seat.ranks for seat in seats)
        key = (frozenset((one.cuda, one.native_bfloat16) for one in targets), ranks)
        if key not in self._grounds:
            self._grounds[key] = self._resolve(targets, ranks)
        return self._grounds[key]

    def targets(self, seat: Seat) -> tuple[Target, ...]:
        machine = self.sites[seat.machine].machine
        return gpu_targets(machine, seat.gpus) if seat.gpus else (choose_target("cpu", machine),)

    def _resolve(self, targets: Sequence[Target], ranks: int) -> Grounds:
        settings, note = self.settings, ""
        kinds = {target.cuda for target in targets}
        if len(kinds) > 1 and settings.dtype == "auto" and not all(target.native_bfloat16 for target in targets):
            settings = changed(settings, dtype="float32")
            note = "The dtype is float32, which all of these processors and GPUs multiply natively."
        # A processor's smaller steps are for all stages.
        ordered = sorted(targets, key=lambda target: target.cuda)
        wishes, reasons = wish(settings, self.facts, ordered, self.weights, None, self._measured)
        experts, why = choose_experts(settings.experts, self.facts, ranks)
        whole = replace(wishes, settings=changed(settings, experts=experts))
        by_kind = {
            kind: replace(whole, weights=memory.weights_bytes(self.facts, wishes.dtype, self.weights, kind))
            for kind in (False, True)
        }
        return Grounds(by_kind[False], by_kind[True], len(kinds) > 1, (note or reasons[0], *reasons[1:]), why)

    def _draft(self, grounds: Grounds, seat: Seat, part: StagePart, sharing: int, links: int) -> Draft:
        key = (id(grounds), seat, part.first, part.stop, sharing, links)
        if key not in self._drafts:
            wishes, machine = _of_stage(grounds.of(seat), part), self.sites[seat.machine].machine
            if seat.gpus:
                made = roomiest(wishes, machine, seat.gpus)
            else:
                made = on_cpu(wishes, part_of_processor(machine, sharing), choose_target("cpu", machine)).draft
            self._drafts[key] = with_links(made, links)
        return self._drafts[key]


def _links(stage: int, stages: int) -> int:
    """Neighbours that a stage has."""
    return (stage > 0) + (stage < stages - 1)


def part_of_processor(machine: Machine, sharing: int) -> Machine:
    """What one of so many stages has of a machine's cores and of its memory's speed; the memory itself is shared."""
    cores = max(1, machine.cpu.usable_cores // sharing)
    cpu = changed(machine.cpu, cores=cores, quota=None)
    return changed(machine, cpu=cpu, rates=changed(machine.rates, memory=machine.rates.memory / sharing))


def _of_stage(wishes: Wishes, part: StagePart) -> Wishes:
    layout = stage_layout(wishes.layout, part.slots)
    return replace(wishes, facts=part.facts, layout=layout, weights=part.weights, outputs=part.last)
