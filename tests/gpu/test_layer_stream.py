"""Streamed layers on a CUDA device: the very logits of resident ones while copies run beside, and less memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from backend.surgery.echo_context import EchoContext
from backend.surgery.layer_stream import stream_layers
from backend.surgery.load import load_model
from backend.surgery.model import ServedModel
from backend.surgery.pack import pack_model
from quant.weight_format import WEIGHT_FORMATS
from tests.fakes.tiny_models import FAMILIES, make_checkpoint

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda", 0)


def load(family: str, folder: Path, hosted: tuple[int, ...] = (), name: str = "model") -> ServedModel:
    weight_format = WEIGHT_FORMATS[name]
    model = load_model(
        make_checkpoint(family, folder),
        dtype=torch.bfloat16,
        device=DEVICE,
        on_progress=lambda done, total: None,
        stored=None if name == "model" else weight_format,
        hosted=hosted,
    )
    packed = pack_model(model, weight_format, None)
    return stream_layers(packed) if hosted else packed


def run(model: ServedModel, steps: int = 1) -> list[Tensor]:
    found = []
    for step in range(steps):
        tokens, every = torch.arange(step, step + 20, device=DEVICE), torch.arange(20, device=DEVICE)
        found.append(model.forward(tokens, every, torch.full_like(every, 20), every, EchoContext()))
    return found


@pytest.mark.parametrize("name", ["model", "int8", "nf4", "fp8"])
@pytest.mark.parametrize("family", ["llama", "qwen3-moe", "gemma2", "gpt-oss"])
def test_the_very_logits_of_a_resident_model(family: str, name: str, tmp_path: Path) -> None:
    if name == "fp8" and torch.cuda.get_device_capability(DEVICE) < (8, 9):
        pytest.skip("this GPU does not multiply fp8")
    resident, streamed = load(family, tmp_path, name=name), load(family, tmp_path, (0, 1, 2), name)
    # Many steps in line at once: a copy that came too early would overwrite what still computes.
    for wanted, found in zip(run(resident, 30), run(streamed, 30), strict=True):
        assert torch.equal(wanted, found)


def wide(folder: Path, hosted: tuple[int, ...], layers: int = 12) -> ServedModel:
    """A Llama whose layers take long enough to copy and to compute that a race would show."""
    config = FAMILIES["llama"]()
    config.num_hidden_layers, config.hidden_size, config.intermediate_size = layers, 1024, 4096
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, "llama", lambda: config)  # pyright: ignore[reportArgumentType]
        return load("llama", folder, hosted)


def test_large_layers_take_turns_and_only_the_buffers_stay(tmp_path: Path) -> None:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(DEVICE)
    resident = wide(tmp_path, ())
    whole, wanted = torch.cuda.memory_allocated(DEVICE) - before, run(resident, 10)
    del resident
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(DEVICE)
    streamed = wide(tmp_path, (0, 2, 3, 5, 6, 8, 9, 11))
    held = torch.cuda.memory_allocated(DEVICE) - before
    assert held == pytest.approx(whole - 6 * whole / 12, rel=0.05)
    assert held == pytest.approx(streamed.weights_bytes, rel=0.05)
    for one, other in zip(wanted, run(streamed, 10), strict=True):
        assert torch.equal(one, other)


def test_the_host_memory_is_pinned_and_no_layer_waits_on_the_host(tmp_path: Path) -> None:
    module: Any = wide(tmp_path, tuple(range(12))).module
    stream: Any = module.model.layers[0]._hf_hook._stream
    assert all(layer.memory.pinned for layer in stream._layers)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(12):
            stream.begin(number)
            stream.end(number)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
