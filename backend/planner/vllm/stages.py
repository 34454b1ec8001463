"""Stages: which layers each rank of pipeline parallelism has. What they weigh is `weights`'."""

from __future__ import annotations

from backend.planner.fit.known_model import KnownModel


def layer_count(model: KnownModel) -> int:
    """Decoder layers, those that keep a state, and those that keep nothing, included."""
    kept = len(model.facts.layers) + sum(part.count for part in model.states)
    return max(kept, len(model.facts.layer_parameters))


def stage_ranges(layers: int, stages: int) -> tuple[range, ...]:
    """As `get_pp_indices` (vllm/distributed/utils.py) divides: what is left over goes to stages from the last but one
    backward, because the last has the output layer."""
    counts = [layers // stages] * stages
    for left in range(layers % stages):
        counts[-2 - left] += 1
    starts = [sum(counts[:stage]) for stage in range(stages + 1)]
    return tuple(range(starts[stage], starts[stage + 1]) for stage in range(stages))


def stage_part(model: KnownModel, layers: range) -> float:
    """The part of all layers' parameters that lies in these."""
    sizes = model.facts.layer_parameters
    if len(sizes) == layer_count(model) and sum(sizes):
        return sum(sizes[layers.start : layers.stop]) / sum(sizes)
    return len(layers) / max(1, layer_count(model))


def attention_slots(model: KnownModel, layers: range) -> range:
    """The slots of `facts.layers` whose layers are among these: of a hybrid, attention is taken to be spread evenly."""
    slots, count = len(model.facts.layers), max(1, layer_count(model))
    return range(slots * layers.start // count, slots * layers.stop // count)
