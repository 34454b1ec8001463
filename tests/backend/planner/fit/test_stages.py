"""Where a model is cut, and that its stages together are the model."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.planner import memory
from backend.planner.fit.stages import cut
from kvcache.layout import build_layout, stage_layout
from tests.fakes.fit_models import known


@settings(max_examples=80, deadline=None)
@given(
    model=st.sampled_from(["8b", "70b", "gemma", "deepseek", "gpt-oss"]),
    rooms=st.lists(st.floats(0.5, 3.0), min_size=1, max_size=8),
)
def test_stages_are_the_model(model: str, rooms: list[float]) -> None:
    facts = known(model).facts
    whole = memory.weights_bytes(facts, "bfloat16")
    parts = list(cut(facts, whole, 2, rooms))
    assert [part.first for part in parts[1:]] == [part.stop for part in parts[:-1]]
    assert (parts[0].first, parts[-1].stop) == (0, len(facts.layer_parameters))
    assert all(part.stop > part.first for part in parts)
    tied = facts.output_parameters >= facts.vocabulary_parameters and len(parts) > 1
    extra = facts.vocabulary_parameters if tied else 0
    assert sum(part.facts.parameters for part in parts) == facts.parameters + extra
    assert sum(part.weights for part in parts) == pytest.approx(whole + 2 * extra, rel=1e-3)
    assert tuple(layer for part in parts for layer in part.facts.layers) == facts.layers
    assert all(part.facts.replicated_parameters >= 0 for part in parts)
    last, others = parts[-1], parts[:-1]
    assert last.facts.output_parameters == facts.output_parameters
    assert all(part.facts.output_parameters == 0 for part in others)


def test_larger_rooms_get_more_layers() -> None:
    facts = known("70b").facts
    even = cut(facts, 140 << 30, 2, [1.0, 1.0])
    uneven = cut(facts, 140 << 30, 2, [3.0, 1.0])
    assert uneven[0].stop > even[0].stop
    assert abs(even[0].weights - even[1].weights) < 2 * 140 * (1 << 30) / 80


def test_pages_of_stages_hold_as_many_positions_as_those_of_the_model() -> None:
    facts = known("gemma").facts
    layout = build_layout(facts.layers, 2)
    parts = cut(facts, 54 << 30, 2, [1.0, 1.0])
    layouts = [stage_layout(layout, part.slots) for part in parts]
    tokens = {group.layer: group.page_tokens for group in layout.groups}
    assert all(tokens[group.layer] == group.page_tokens for one in layouts for group in one.groups)
    assert sum(len(group.slots) for one in layouts for group in one.groups) == len(facts.layers)


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be cut"):
        cut(known("8b").facts, 16 << 30, 2, [1.0] * 33)
