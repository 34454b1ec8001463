"""Attention gets what the model is called with, though the layers between keep it to themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from backend.library.files import ModelFiles
from backend.surgery.describe import trace_model
from backend.surgery.handed_on import hand_on
from backend.surgery.load import load_model
from tests.fakes.attention_context import PlainAttentionContext, SequenceCache

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "bos_token_id": None,
    "eos_token_id": None,
}


class Inner(nn.Module):
    def forward(self, x: int, **given: str) -> str:
        return given["word"]


class Outer(nn.Module):
    def __init__(self, passes: bool) -> None:
        super().__init__()
        self.inner, self.passes = Inner(), passes

    def forward(self, x: int, word: str) -> str:
        return self.inner(x, word="passed") if self.passes else self.inner(x)


def test_each_call_hands_on_what_it_was_given() -> None:
    outer, missed = Outer(passes=False), []
    hand_on(outer, ["inner"], "word", missed.append)
    assert [outer(1, word="one"), outer(1, word="two")] == ["one", "two"]
    assert missed == ["inner", "inner"]


def test_what_layers_pass_themselves_stays() -> None:
    outer, missed = Outer(passes=True), []
    hand_on(outer, ["inner"], "word", missed.append)
    assert outer(1, word="one") == "passed"
    assert missed == []


@pytest.mark.parametrize("kind", [transformers.NemotronConfig, transformers.StableLmConfig])
def test_models_whose_layers_keep_arguments_to_themselves_are_served(
    kind: type[transformers.PreTrainedConfig], tmp_path: Path
) -> None:
    config = kind(**SMALL)
    assert len(trace_model(config)[1].unhanded) == 2
    reference = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    reference.eval().save_pretrained(tmp_path)
    weights = tuple(str(path) for path in tmp_path.glob("*.safetensors"))
    size = sum(Path(path).stat().st_size for path in weights)
    files = ModelFiles(name="kept", format="safetensors", weights=weights, folder=str(tmp_path), bytes=size)
    served = load_model(files, dtype=torch.float32, device=torch.device("cpu"), on_progress=lambda done, total: None)
    tokens, every = torch.arange(1, 12), torch.arange(11)
    context = PlainAttentionContext(served.facts, [(SequenceCache(), 0, 11)])
    given = served.forward(tokens, every, torch.full((11,), 11), every, context)
    with torch.no_grad():
        expected = reference(input_ids=tokens[None]).logits[0]
    assert (given - expected).abs().max() < 1e-4
    assert context.slots_called == [0, 1]


def test_layers_that_pass_arguments_on_are_left_alone() -> None:
    assert trace_model(transformers.LlamaConfig(**SMALL))[1].unhanded == ()
