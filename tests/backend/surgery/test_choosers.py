"""Models that choose the keys they attend to are served up to as many positions as they choose, and no further."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.deepseek_v32 import modeling_deepseek_v32 as family

from backend.errors import UnsupportedModelError
from backend.surgery.choosers import CHOOSER, Idle
from backend.surgery.describe import describe, trace_model
from backend.surgery.load import load_model
from backend.surgery.mask import Mask
from kvcache.layout import Keeps
from tests.fakes.tiny_models import FAMILIES, make_checkpoint


def config(**changes: Any) -> Any:
    small = FAMILIES["deepseek-v32"]()
    for name, value in changes.items():
        setattr(small, name, value)
    return small


def test_contexts_end_where_choosing_begins() -> None:
    facts, traced = trace_model(config(index_topk=40))
    assert (traced.chosen, facts.max_positions) == (40, 40)
    assert "chooses 40 positions" in facts.positions_reason
    assert traced.choosers == tuple(f"model.layers.{layer}.self_attn.indexer" for layer in range(3))


def test_a_model_that_chooses_more_than_it_was_made_for_is_served_as_far_as_that() -> None:
    facts = describe(config(index_topk=4096))
    assert (facts.max_positions, facts.positions_reason) == (256, "")


def test_other_models_choose_nothing() -> None:
    facts, traced = trace_model(FAMILIES["deepseek-v3"]())
    assert (traced.choosers, traced.chosen, facts.positions_reason) == ((), None, "")


@pytest.mark.parametrize("name", ["deepseek-v32", "glm-moe-dsa"])
def test_latents_are_all_that_is_kept(name: str) -> None:
    assert {layer.keeps for layer in describe(FAMILIES[name]()).layers} == {Keeps.LATENT}


def test_choosers_take_no_memory_though_checkpoints_have_their_weights(tmp_path: Path) -> None:
    files = make_checkpoint("glm-moe-dsa", tmp_path)
    model = load_model(files, dtype=torch.float32, device=torch.device("cpu"), on_progress=lambda done, total: None)
    assert not [name for name in model.module.state_dict() if f".{CHOOSER}." in name]
    assert model.weights_bytes == 4 * model.facts.parameters < files.bytes


def test_one_that_counts_its_choice_twice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is chosen may only say where to look: here it also moves what is attended to."""
    forward = family.DeepseekV32Attention.forward

    def other(self: Any, hidden_states: Tensor, *given: Any, **named: Any) -> Any:
        plain = self.config._attn_implementation == "eager"
        return forward(self, hidden_states * (2.0 if plain else 1.0), *given, **named)

    monkeypatch.setattr(family.DeepseekV32Attention, "forward", other)
    with pytest.raises(UnsupportedModelError, match="does more with its choice"):
        describe(config())


def test_one_that_leaves_out_keys_of_short_sequences_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = family.DeepseekV32Indexer.forward

    def first_twice(self: Any, *given: Any, **named: Any) -> Tensor:
        chosen = forward(self, *given, **named)
        return torch.cat((chosen[..., :1], chosen[..., :1], chosen[..., 2:]), dim=-1)

    monkeypatch.setattr(family.DeepseekV32Indexer, "forward", first_twice)
    with pytest.raises(UnsupportedModelError, match="does more with its choice"):
        describe(config())


def test_one_whose_choice_is_computed_with_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = family.DeepseekV32Attention.forward

    def counts(self: Any, hidden_states: Tensor, *given: Any, **named: Any) -> Any:
        self.indexer(hidden_states, hidden_states).sum()
        return forward(self, hidden_states, *given, **named)

    monkeypatch.setattr(family.DeepseekV32Attention, "forward", counts)
    with pytest.raises(UnsupportedModelError, match="more than tokens and positions"):
        describe(config())


def test_a_chooser_that_answers_something_else_than_positions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = family.DeepseekV32Indexer.forward
    monkeypatch.setattr(
        family.DeepseekV32Indexer, "forward", lambda self, *given, **named: forward(self, *given, **named).float()
    )
    with pytest.raises(UnsupportedModelError, match="how many keys"):
        describe(config())


def test_a_mask_is_the_same_for_every_head_and_gives_no_other_part() -> None:
    mask = Mask(lambda batch, head, query, key: key <= query)
    every = slice(None)
    assert mask[:, 0] is mask[:, 0, :, :] is mask
    for part in ((every, 1), (every, 0, slice(1, None), every), 0, (every, 0, every, slice(0, 2))):
        with pytest.raises(TypeError):
            mask[part]


def test_an_idle_chooser_passes_nothing_that_could_be_computed_with() -> None:
    with pytest.raises(TypeError):
        _: Any = Idle()(torch.zeros(1)) + 1  # pyright: ignore
