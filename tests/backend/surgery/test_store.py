"""Quantized models: near the reference, as large as planned, and never whole in the model's own dtype while loading."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from backend.planner import memory
from backend.surgery.latent import Expansion
from backend.surgery.linears import served_linears
from backend.surgery.load import load_model
from backend.surgery.model import ServedModel
from backend.surgery.pack import pack_model
from backend.surgery.stack import FusedStack
from quant.cpu.team import Team
from quant.weight_format import WEIGHT_FORMATS, Linear
from tests.fakes.attention_context import PlainAttentionContext, SequenceCache
from tests.fakes.tiny_models import make_checkpoint

# Plain, tied with biases, wide enough for the fused stack, experts of both layouts and with biases, and latents.
FAMILIES = [
    "llama",
    "llama-tied",
    "llama-wide",
    "qwen3-moe",
    "gpt-oss",
    "mixtral",
    "llama4",
    "deepseek-v3",
    "starcoder2",
]
# Its layers of 24 columns are merged, so fewer are filled up than one by one.
UNEVEN = {"deepseek-v3"}
FORMATS = ["int8", "nf4", "fp8"]
# Least mean cosine of logits to the reference's; a format whose levels or scales are wrong has less than 0.5.
NEAR = {"int8": 0.998, "nf4": 0.9, "fp8": 0.97}


def load(family: str, folder: Path, name: str, dtype: torch.dtype = torch.float32) -> ServedModel:
    """The family's model in a format, as an engine loads it."""
    weight_format = WEIGHT_FORMATS[name]
    model = load_model(
        make_checkpoint(family, folder),
        dtype=dtype,
        device=torch.device("cpu"),
        on_progress=lambda done, total: None,
        stored=None if name == "model" else weight_format,
    )
    return pack_model(model, weight_format, Team(1))


def logits(model: ServedModel) -> Tensor:
    tokens, every = torch.arange(1, 21), torch.arange(20)
    context = PlainAttentionContext(model.facts, [(SequenceCache(), 0, 20)])
    return model.forward(tokens, every, torch.full((20,), 20), every, context)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", FORMATS)
def test_logits_stay_near_those_of_the_model_s_own_weights(family: str, name: str, tmp_path: Path) -> None:
    plain, quantized = logits(load(family, tmp_path, "model")), logits(load(family, tmp_path, name))
    near = functional.cosine_similarity(plain, quantized, dim=-1)
    assert near.mean() > NEAR[name]
    assert not torch.equal(plain, quantized)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["model", *FORMATS])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_holds_what_was_planned(family: str, name: str, dtype: str, tmp_path: Path) -> None:
    model = load(family, tmp_path, name, getattr(torch, dtype))
    planned = memory.weights_bytes(model.facts, dtype, name, cuda=False)
    if family in UNEVEN and name in ("model", "fp8"):
        assert model.weights_bytes < planned < 1.04 * model.weights_bytes
    else:
        assert model.weights_bytes == planned


def test_packing_a_loaded_model_stores_the_same(tmp_path: Path) -> None:
    files = make_checkpoint("qwen3-moe", tmp_path)
    device, quiet = torch.device("cpu"), lambda done, total: None
    later = load_model(files, dtype=torch.float32, device=device, on_progress=quiet)
    later = pack_model(later, WEIGHT_FORMATS["int8"], Team(1))
    early = load("qwen3-moe", tmp_path, "int8")
    assert torch.equal(logits(later), logits(early))
    assert later.weights_bytes == early.weights_bytes


class Watching:
    """A format that notes how many of the weights given to it before are still alive."""

    name = "int8"

    def __init__(self) -> None:
        self.given: list[weakref.ref[Any]] = []
        self.alive: list[int] = []

    def linear(self, weight: Tensor, bias: Tensor | None, team: Team | None, *, exact: bool = False) -> Linear:
        self.alive.append(sum(one() is not None for one in self.given))
        self.given.append(weakref.ref(weight.untyped_storage()))
        return WEIGHT_FORMATS["int8"].linear(weight, bias, team, exact=exact)


def test_weights_are_dropped_as_soon_as_they_are_stored(tmp_path: Path) -> None:
    watching = Watching()
    files = make_checkpoint("llama", tmp_path)
    seen: list[int] = []

    def on_progress(done: int, total: int) -> None:
        seen.append(len(watching.given))

    load_model(
        files, dtype=torch.float32, device=torch.device("cpu"), on_progress=on_progress, stored=watching
    )  # fmt: skip
    assert len(watching.given) == 3 * 4
    assert watching.alive == [0] * 12
    # And they are stored in between, not at the end.
    assert set(range(0, 12, 4)) <= set(seen)


def test_what_is_kept_in_the_model_s_dtype(tmp_path: Path) -> None:
    model = load("deepseek-v3", tmp_path, "nf4", torch.bfloat16)
    module: Any = model.module
    assert module.get_output_embeddings().stored.rows(torch.tensor([0])).dtype == torch.bfloat16
    left = dict(module.named_parameters())
    assert {parameter.dtype for parameter in left.values()} == {torch.bfloat16}
    assert any("mlp.gate" in name for name in left), "the router"
    assert any(isinstance(child, Expansion) and child.weight is not None for child in module.modules())
    assert not any("experts" in name and parameter.dim() == 3 for name, parameter in left.items())


def test_a_stack_of_layers_is_not_fused_over_other_weights(tmp_path: Path) -> None:
    assert any(isinstance(child, FusedStack) for child in load("llama-wide", tmp_path, "model").module.modules())
    quantized = load("llama-wide", tmp_path, "int8")
    assert not any(isinstance(child, FusedStack) for child in quantized.module.modules())
    for name, linear in served_linears(quantized.module):
        assert linear.stored is not None, name
        assert isinstance(linear, nn.Module)
        assert linear.weight.numel() == 0
