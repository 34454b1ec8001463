"""A Plan's layers in host memory, from the files to the loaded model: as large as planned, with the same answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from torch import Tensor

from backend.compose_engine import load_served, plan_engine
from backend.engine_settings import EngineSettings
from backend.planner.decide import decide
from backend.planner.plan import HostedLayers
from backend.surgery.describe import describe
from backend.surgery.hosted_layer import ALIGNMENT, HostedLayer, layer_tensors
from backend.surgery.layer_stream import stream_layers
from backend.surgery.load import load_model, read_config
from backend.surgery.model import ServedModel
from backend.surgery.pack import pack_model
from quant.weight_format import WEIGHT_FORMATS
from tests.fakes.attention_context import PlainAttentionContext, SequenceCache
from tests.fakes.machines import gpu_machine
from tests.fakes.tiny_models import make_checkpoint


def logits(model: ServedModel) -> Tensor:
    every = torch.arange(12)
    context = PlainAttentionContext(model.facts, [(SequenceCache(), 0, 12)])
    return model.forward(every + 3, every, torch.full_like(every, 12), every, context)


def test_a_plan_with_layers_in_host_memory_is_loaded_so(tmp_path: Path) -> None:
    # The processor has no packed product for float16, so that weights lie here as they do on a GPU.
    settings = EngineSettings(files=make_checkpoint("llama", tmp_path), device="cpu", dtype="float16")
    plan = plan_engine(settings)
    resident, team = load_served(settings, plan, lambda stage, done, total: None)
    hosted = HostedLayers((0, 1, 2), 3, 1, 1, 1, 25.0, 0.1)
    streamed, other = load_served(settings, replace(plan, hosted=hosted), lambda stage, done, total: None)
    try:
        assert resident.hosted == ()
        assert streamed.hosted == ("model.layers.0", "model.layers.1", "model.layers.2")
        module: Any = streamed.module
        assert all(hasattr(layer, "_hf_hook") for layer in module.model.layers)
        assert streamed.weights_bytes < resident.weights_bytes
        assert torch.equal(logits(streamed), logits(resident))
    finally:
        for one in (team, other):
            if one is not None:
                one.close()


@pytest.mark.parametrize("family", ["llama", "llama-tied", "qwen3-moe", "deepseek-v3"])
@pytest.mark.parametrize("name", ["model", "int8"])
def test_host_and_device_hold_what_was_planned(family: str, name: str, tmp_path: Path) -> None:
    files = make_checkpoint(family, tmp_path)
    facts = describe(read_config(files))
    settings = EngineSettings(files=files, dtype="float32", weights=name, host_weights=1 << 30)
    plan = decide(settings, facts, gpu_machine())
    assert plan.hosted is not None
    terms = {term.name: term.bytes for term in plan.ranks[0].memory}
    loaded = load_model(
        files,
        dtype=torch.float32,
        device=torch.device("cpu"),
        on_progress=lambda done, total: None,
        stored=None if name == "model" else WEIGHT_FORMATS[name],
        hosted=plan.hosted.layers,
    )
    model = pack_model(loaded, WEIGHT_FORMATS[name], None)
    layers = [HostedLayer(model.module.get_submodule(path)) for path in model.hosted]
    gaps = ALIGNMENT * max(len(list(layer_tensors(layer.layer))) for layer in layers)
    assert plan.hosted.host_bytes == pytest.approx(sum(layer.bytes for layer in layers), rel=0.01)
    assert stream_layers(model).weights_bytes == pytest.approx(
        terms["weights"] + terms["streaming"], rel=0.03, abs=gaps
    )
