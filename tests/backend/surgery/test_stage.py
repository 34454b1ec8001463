"""One stage of a model: what it reads, what it holds, what it takes and refuses, alone and divided over ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.models.llama import modeling_llama

from backend.errors import UnsupportedModelError
from backend.layer_span import LayerSpan
from backend.library.files import ModelFiles
from backend.parallel.division import Division
from backend.surgery.load import load_model
from backend.surgery.model import ServedModel
from backend.surgery.pack import pack_model
from backend.surgery.stack import FusedStack
from backend.surgery.stage_tensors import stage_tensors
from quant.cpu.team import Team
from quant.weight_format import WEIGHT_FORMATS
from tests.fakes.attention_context import PlainAttentionContext, SequenceCache
from tests.fakes.packed_checkpoints import awq, write_packed
from tests.fakes.stage_chain import load_stages
from tests.fakes.thread_group import ThreadGroup, on_ranks, thread_groups
from tests.fakes.tiny_models import make_checkpoint

FIRST = LayerSpan(0, 2, 3, 0, 2)
LAST = LayerSpan(2, 3, 3, 2, 3)
LENGTH = 12


def load(files: ModelFiles, span: LayerSpan | None, group: ThreadGroup | None = None, **more: Any) -> ServedModel:
    division = None if group is None else Division(group.rank, (1.0,) * group.size, (1.0,) * group.size)
    return load_model(
        files, dtype=torch.float32, device=torch.device("cpu"), on_progress=more.pop("told", lambda done, total: None),
        span=span, division=division, group=group, **more,
    )  # fmt: skip


def answer(model: ServedModel, hidden: Tensor | None = None) -> Tensor:
    every = torch.arange(LENGTH)
    context = PlainAttentionContext(model.facts, [(SequenceCache(), 0, LENGTH)])
    return model.forward(every + 3, every, torch.full_like(every, LENGTH), every, context, hidden).clone()


@pytest.mark.parametrize("family", ["llama-tied", "qwen3-moe", "deepseek-v3", "gpt-oss"])
def test_a_stage_needs_no_tensor_but_those_it_is_said_to_read(family: str, tmp_path: Path) -> None:
    files = make_checkpoint(family, tmp_path / "whole")
    wanted = answer(load(files, FIRST))
    whole = answer(load(files, None))
    read: dict[LayerSpan, set[str]] = {}
    for span in (FIRST, LAST):
        entries = stage_tensors(files, span)
        assert list(entries) == list(files.weights)
        read[span] = {entry.name for own in entries.values() for entry in own}
        (path,) = files.weights
        with safe_open(path, framework="pt") as source:
            kept = {name: source.get_tensor(name) for name in read[span]}
        part = tmp_path / f"{span.first}.safetensors"
        save_file(kept, part)
        totals: list[tuple[int, int]] = []
        own = replace(files, weights=(str(part),))
        model = load(own, span, told=lambda done, total, totals=totals: totals.append((done, total)))
        size = sum(entry.bytes for entries in entries.values() for entry in entries)
        assert totals[-1] == (size, size)
        given = answer(model, None if span.begins else wanted)
        torch.testing.assert_close(given, wanted if span.begins else whole, rtol=1e-5, atol=1e-5)
    both = read[FIRST] & read[LAST]
    assert both == ({"model.embed_tokens.weight"} if family == "llama-tied" else set())
    with safe_open(files.weights[0], framework="pt") as source:
        assert read[FIRST] | read[LAST] == set(source.keys())


def test_the_parts_of_packed_weights_belong_to_their_layers_stage(tmp_path: Path) -> None:
    quantization = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
    packed, plain = write_packed(tmp_path, "llama", awq, quantization)
    first, last = ({one.name for one in stage_tensors(packed, span)[packed.weights[0]]} for span in (FIRST, LAST))
    product = {f"model.layers.1.mlp.up_proj.{part}" for part in ("qweight", "qzeros", "scales")}
    assert product < first
    assert not product & last
    assert not first & last
    hidden = answer(load(packed, FIRST))
    torch.testing.assert_close(answer(load(packed, LAST), hidden), answer(load(plain, None)), rtol=1e-4, atol=1e-4)


def test_a_gguf_files_tensors_are_told_apart(starter: ModelFiles) -> None:
    spans = (LayerSpan(0, 11, 30, 0, 11), LayerSpan(11, 30, 30, 11, 30))
    first, last = ({one.name for own in stage_tensors(starter, span).values() for one in own} for span in spans)
    assert first & last == {"token_embd.weight"}
    assert {"blk.10.attn_q.weight", "token_embd.weight"} < first
    assert {"blk.11.ffn_norm.weight", "output_norm.weight"} < last
    assert not any(name.startswith(("blk.11.", "output_norm")) for name in first)


@pytest.mark.parametrize("family", ["llama-tied", "gemma2", "gpt-oss", "deepseek-v3", "olmo2"])
def test_ranks_of_a_stage_get_what_their_first_one_received(family: str, tmp_path: Path) -> None:
    files = make_checkpoint(family, tmp_path)
    whole = answer(load(files, None))
    hidden = answer(load(files, FIRST))
    first_groups, last_groups = thread_groups(2), thread_groups(2)
    first = [load(files, FIRST, group) for group in first_groups]
    last = [load(files, LAST, group) for group in last_groups]
    whole_bytes = load(files, FIRST).weights_bytes
    assert all(model.weights_bytes < 0.75 * whole_bytes for model in first)
    states = on_ranks(first_groups, lambda rank: answer(first[rank]))
    for given in states:  # all ranks have them; the first hands them on
        torch.testing.assert_close(given, hidden, rtol=1e-4, atol=1e-4)
    logits = on_ranks(last_groups, lambda rank: answer(last[rank], states[0] if rank == 0 else None))
    torch.testing.assert_close(logits[0], whole, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("llama-wide", torch.float32), ("qwen3-wide", torch.float32), ("mistral-wide", torch.bfloat16)],
)
def test_a_stages_own_layers_are_one_stack(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    files = make_checkpoint(family, tmp_path)
    for stage, length in zip(load_stages(files, [0, 1, 3], dtype), (1, 2), strict=True):
        team = Team(1)
        packed = pack_model(stage, WEIGHT_FORMATS["model"], team)
        stacks = [module for module in packed.module.modules() if isinstance(module, FusedStack)]
        assert [len(stack.layers) for stack in stacks] == [length]
        team.close()


def test_missing_and_foreign_hidden_states_are_refused(tmp_path: Path) -> None:
    last = load(make_checkpoint("llama", tmp_path), LAST)
    with pytest.raises(ValueError, match="needs hidden states"):
        answer(last)
    for wrong in (torch.zeros(LENGTH, 63), torch.zeros(LENGTH - 1, 64), torch.zeros(LENGTH, 64, dtype=torch.bfloat16)):
        with pytest.raises(ValueError, match="hidden states are"):
            answer(last, wrong)
    assert answer(last, torch.zeros(LENGTH, 64)).shape == (LENGTH, 128)


@pytest.mark.parametrize("span", [LayerSpan(0, 2, 4, 0, 2), LayerSpan(2, 2, 3, 2, 2), LayerSpan(1, 4, 3, 1, 3)])
def test_spans_that_the_model_does_not_have_are_refused(span: LayerSpan, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="of a model that has 3"):
        load(make_checkpoint("llama", tmp_path), span)


def test_slots_that_are_not_those_of_the_layers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="not cut into stages"):
        load(make_checkpoint("llama", tmp_path), LayerSpan(1, 3, 3, 0, 2))


@pytest.mark.parametrize("layer", [0, 1])
def test_layers_that_hand_on_more_than_hidden_states_are_refused(
    layer: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the given layer saw is added by the last one behind everybody's back; a cut behind it must not be served."""
    files = make_checkpoint("llama", tmp_path)
    plain = modeling_llama.LlamaDecoderLayer.forward
    seen: dict[str, Tensor] = {}

    def forward(self: Any, hidden_states: Tensor, **others: Any) -> Tensor:
        number = self.self_attn.layer_idx
        if number == layer:
            seen["hidden"] = hidden_states
        answer = plain(self, hidden_states, **others)
        return answer + 0.1 * seen["hidden"] if number == 2 else answer

    monkeypatch.setattr(modeling_llama.LlamaDecoderLayer, "forward", forward)
    with pytest.raises(UnsupportedModelError, match="not cut into stages"):
        load(files, LAST)
    # Where the cut is before it, nothing is missing.
    assert load(files, LayerSpan(layer, 3, 3, layer, 3)).weights_bytes > 0
