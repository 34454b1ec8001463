"""Attention modules that run several times in a pass have a slot for each run, and are divided as others are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from backend.parallel.division import Division
from backend.surgery.decoder_layers import decoder_layers
from backend.surgery.describe import trace_model
from backend.surgery.divide import checked_cuts
from backend.surgery.flow import FlowRecord
from backend.surgery.trace import Traced, TracedLayer
from backend.surgery.turns import take_turns
from kvcache.layout import Keeps, LayerCache
from tests.fakes.tiny_models import FAMILIES


class Attention(nn.Module):
    slot = 0

    def forward(self, slots: list[Any]) -> None:
        slots.append(self.slot)
        if slots[0] == "break off":
            raise ValueError("broken off")


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.twice, self.once = Attention(), Attention()
        self.once.slot = 1

    def forward(self, slots: list[Any]) -> list[Any]:
        for attention in (self.twice, self.once, self.twice):
            attention(slots)
        return slots


def traced(*names: str) -> Traced:
    cache = LayerCache(Keeps.FULL, None, 2, 16, 16)
    return Traced(tuple(TracedLayer(name, cache, 2) for name in names), (), {})


def test_each_run_has_its_own_slot_in_every_pass() -> None:
    model, found = Model(), traced("twice", "once", "twice")
    take_turns(model, found)
    assert [model([]), model([])] == [[0, 1, 2], [0, 1, 2]]


def test_a_pass_that_broke_off_does_not_shift_the_next_one() -> None:
    model = Model()
    take_turns(model, traced("twice", "once", "twice"))
    with pytest.raises(ValueError, match="broken off"):
        model(["break off"])  # breaks off in the first run
    assert model([]) == [0, 1, 2]


def test_each_module_is_named_once_in_the_order_of_first_calls() -> None:
    found = traced("b", "a", "b", "c")
    assert [layer.name for layer in found.modules] == ["b", "a", "c"]
    assert found.repeated == {"b"}


def test_layers_that_run_again_have_no_turn_in_host_memory() -> None:
    facts, found = trace_model(FAMILIES["hrm-text"]())
    assert len(found.layers) == 12
    assert len(found.modules) == 4
    assert facts.layer_parameters == ()


def test_a_model_s_layers_that_run_once_keep_theirs_beside_such() -> None:
    model = nn.Module()
    model.first, model.second = nn.ModuleList([nn.Linear(2, 2)]), nn.ModuleList([nn.Linear(2, 2)])
    assert decoder_layers(model, ["first.0", "second.0", "first.0"]) == ("second.0",)


def test_all_of_a_repeated_layer_is_divided() -> None:
    config = FAMILIES["hrm-text"]()
    _, found = trace_model(config)
    cuts = checked_cuts(config, found, Division(0, (1.0, 1.0), (1.0, 1.0), "tensor"))
    assert cuts.whole == []
    assert cuts.summed == {
        f"model.{stack}_module.layers.{layer}.{last}"
        for stack in "HL"
        for layer in range(2)
        for last in ("self_attn.o_proj", "mlp.down_proj")
    }


def test_linears_that_run_more_often_than_their_layer_are_left_whole() -> None:
    record, numbers = FlowRecord(), torch.zeros(1)
    for path in ("layer.once", "layer.twice", "layer.twice", "layer.once", "layer.twice", "end"):
        record.note_linear(path, numbers, numbers)
    record.forget_repeated(lambda path: 2 if path.startswith("layer.") else 1)
    assert set(record.inputs) == set(record.outputs) == {"layer.once", "end"}
    assert [set(again.inputs) for again in record.again] == [{"layer.once"}, set()]
