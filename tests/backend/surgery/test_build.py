"""Building a model takes no memory for its weights, however large they are."""

from __future__ import annotations

import resource

import torch
from transformers import DeepseekV3Config

from backend.parallel.division import Division
from backend.surgery.build import build
from backend.surgery.describe import trace_model
from backend.surgery.divide import checked_cuts


def test_experts_larger_than_memory_are_built_and_divided() -> None:
    config = DeepseekV3Config(num_hidden_layers=4)  # one layer of 256 experts, 45 GB in float32
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = build(config, torch.float32)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert all(not buffer.is_meta for buffer in model.buffers())
    _, traced = trace_model(config)
    cuts = checked_cuts(config, traced, Division(1, (1.0,) * 8, (1.0,) * 8))
    assert len(cuts.heads) == 4
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown < 4 << 30
