"""What is told of rotary variants whose keys depend on lengths, and that it is true of the keys."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from backend.surgery.load import load_model
from backend.surgery.model import ServedModel
from tests.fakes.attention_context import PlainAttentionContext, SequenceCache
from tests.fakes.tiny_models import make_checkpoint

TRAINED = 32  # llama-dynamic's max_position_embeddings


def load(family: str, folder: Path) -> ServedModel:
    files = make_checkpoint(family, folder)
    cpu = torch.device("cpu")
    return load_model(files, dtype=torch.float32, device=cpu, on_progress=lambda done, total: None)


@pytest.mark.parametrize(
    ("family", "recompute", "scaled_past"),
    [
        ("llama", (), None),
        ("llama-yarn", (), None),
        ("llama-llama3", (), None),
        ("llama-dynamic", (), TRAINED),
        ("phi3-longrope", (24,), None),
    ],
)
def test_what_keys_depend_on(family: str, recompute: tuple[int, ...], scaled_past: int | None, tmp_path: Path) -> None:
    model = load(family, tmp_path)
    assert (model.recompute_lengths, model.scaled_past) == (recompute, scaled_past)


def first_keys(model: ServedModel, prompt: int, count: int = 8) -> torch.Tensor:
    """The first layer's keys of the first tokens of a prompt: [count, kv_heads, D]."""
    cache, every = SequenceCache(), torch.arange(count)
    context = PlainAttentionContext(model.facts, [(cache, 0, count)])
    model.forward(every, every, torch.full((count,), prompt), every, context)
    return cache.keys[0]


def test_prompts_up_to_the_trained_length_share_keys_and_longer_ones_have_their_own(tmp_path: Path) -> None:
    model = load("llama-dynamic", tmp_path)
    assert torch.equal(first_keys(model, 8), first_keys(model, TRAINED))
    assert not torch.equal(first_keys(model, 8), first_keys(model, TRAINED + 1))
    assert not torch.equal(first_keys(model, TRAINED + 1), first_keys(model, TRAINED + 2))
