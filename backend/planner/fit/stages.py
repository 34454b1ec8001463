"""Stages: the part of a model that a range of layers is, and where to cut it. Pure; devices are `replica`'s."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from backend.planner.model_facts import ModelFacts


@dataclass(frozen=True, slots=True)
class StagePart:
    """A range of layers.

    Attributes:
        first, stop: the layers, half-open; `of` is how many there are.
        facts: those of these layers, with the embedding in the first stage and the output layer in the last.
        weights: bytes once stored.
        slots: of the attention layers among them.
    """

    first: int
    stop: int
    of: int
    facts: ModelFacts
    weights: int
    slots: range

    @property
    def share(self) -> float:
        return (self.stop - self.first) / self.of

    @property
    def last(self) -> bool:
        return self.stop == self.of


def layer_counts(facts: ModelFacts) -> tuple[int, ...]:
    """Parameters of every layer, of all kinds; equal ones where only their sum is known."""
    if facts.layer_parameters:
        return facts.layer_parameters
    count = max(1, len(facts.layers))
    return ((facts.parameters - facts.vocabulary_parameters) // count,) * count


def cut(facts: ModelFacts, weights: int, element: int, rooms: Sequence[float]) -> tuple[StagePart, ...]:
    """As many stages as `rooms`, in whose proportion the weights are given out, whole layers each.

    weights: bytes of the whole model once stored. element: bytes of an element of what formats leave alone.
    rooms: relative; above 0.

    Raises ValueError where a stage would have no layer that keeps K and V.
    """
    head, tail = _ends(facts)
    edges = _edges(_held(facts, weights, element), head * element, tail * element, rooms)
    return cut_at(facts, weights, element, edges)


def cut_at(facts: ModelFacts, weights: int, element: int, edges: Sequence[int]) -> tuple[StagePart, ...]:
    """Stages between these edges, the first of which is 0 and the last the count of layers.

    weights, element: as `cut`'s.

    Raises ValueError where a stage would have no layer that keeps K and V.
    """
    held = _held(facts, weights, element)
    parts = tuple(_part(facts, first, stop, held, element) for first, stop in pairwise(edges))
    if not all(part.slots for part in parts):
        raise ValueError(f"{len(held)} layers cannot be cut into {len(parts)} stages")
    return parts


def _held(facts: ModelFacts, weights: int, element: int) -> list[int]:
    """Bytes of every layer, once stored."""
    layers = layer_counts(facts)
    inside = max(0, weights - _outside(facts) * element)
    return [inside * parameters // max(1, sum(layers)) for parameters in layers]


def _ends(facts: ModelFacts) -> tuple[int, int]:
    """Parameters before the first layer and after the last, where these are on different devices.

    Tied ones are there twice.
    """
    tied = facts.output_parameters >= facts.vocabulary_parameters
    embedding = facts.vocabulary_parameters if tied else facts.vocabulary_parameters - facts.output_parameters
    return embedding, facts.output_parameters


def _outside(facts: ModelFacts) -> int:
    """Parameters of no layer: the vocabulary's and the last norm."""
    return max(facts.vocabulary_parameters, facts.parameters - sum(layer_counts(facts)))


def _edges(held: Sequence[int], head: int, tail: int, rooms: Sequence[float]) -> list[int]:
    """Where stages begin and end, so that each has bytes in proportion to its room, and at least one layer."""
    total = head + sum(held) + tail
    edges, number, done = [0], 0, float(head)
    wanted = 0.0
    for stage, room in enumerate(rooms[:-1]):
        wanted += total * room / sum(rooms)
        most = len(held) - (len(rooms) - 1 - stage)
        first = number
        while number < most and (number == first or done + held[number] / 2 <= wanted):
            done += held[number]
            number += 1
        edges.append(number)
    return [*edges, len(held)]


def _part(facts: ModelFacts, first: int, stop: int, held: Sequence[int], element: int) -> StagePart:
    layers = layer_counts(facts)
    total = len(layers)
    slots = _slots(len(facts.layers), first, stop, total)
    head, tail = _ends(facts)
    embedding, output = head if first == 0 else 0, tail if stop == total else 0
    if first == 0 and stop == total:
        embedding = facts.vocabulary_parameters - output
    norms = _outside(facts) - facts.vocabulary_parameters if stop == total else 0
    inside = sum(layers[first:stop])
    query, key = facts.query_parameters[slots.start : slots.stop], facts.key_parameters[slots.start : slots.stop]
    # Attention is known layer by layer; MLPs and experts are taken for as large a part as the rest of these layers is.
    rest = max(1, sum(layers) - facts.attention_parameters)
    part = max(0.0, inside - sum(query) - sum(key)) / rest
    own = replace(
        facts,
        layers=facts.layers[slots.start : slots.stop],
        heads=facts.heads[slots.start : slots.stop],
        query_parameters=query,
        key_parameters=key,
        columns=tuple(replace(one, parameters=int(one.parameters * part)) for one in facts.columns),
        experts=tuple(replace(one, parameters=int(one.parameters * part)) for one in facts.experts),
        vocabulary_parameters=embedding + output,
        output_parameters=output,
        layer_parameters=layers[first:stop],
        parameters=inside + embedding + output + norms,
    )
    weights = sum(held[first:stop]) + (embedding + output + norms) * element
    return StagePart(first, stop, total, own, weights, slots)


def _slots(count: int, first: int, stop: int, total: int) -> range:
    """Attention layers among a range of layers; where only some are attention, these are taken as spread evenly."""
    return range(first * count // total, stop * count // total)
