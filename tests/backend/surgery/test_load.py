"""Loading fills every parameter once, says what is wrong with files, and reads GGUF as transformers does."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from backend.errors import BrokenModelError
from backend.library.files import ModelFiles
from backend.surgery.load import load_model
from backend.surgery.model import ServedModel
from tests.fakes.attention_context import PlainAttentionContext, SequenceCache
from tests.fakes.decode import decode
from tests.fakes.tiny_models import make_checkpoint

GATE = "model.layers.1.mlp.gate_proj.weight"


def load(files: ModelFiles, dtype: torch.dtype = torch.float32) -> ServedModel:
    return load_model(files, dtype=dtype, device=torch.device("cpu"), on_progress=lambda done, total: None)


@pytest.fixture
def llama(tmp_path: Path) -> ModelFiles:
    return make_checkpoint("llama", tmp_path)


def rewrite(files: ModelFiles, changes: dict[str, torch.Tensor | None]) -> None:
    """Sets tensors of the one shard, or removes those set to None."""
    tensors = load_file(files.weights[0]) | changes
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, files.weights[0], metadata={"format": "pt"})


def test_a_missing_tensor_is_named(llama: ModelFiles) -> None:
    rewrite(llama, {GATE: None})
    with pytest.raises(BrokenModelError, match=f"incomplete.*\n.*{GATE}"):
        load(llama)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(llama: ModelFiles) -> None:
    rewrite(llama, {GATE: torch.zeros(95, 64)})
    with pytest.raises(BrokenModelError, match=rf"{GATE} is \[95, 64\] in the file, and \[96, 64\]"):
        load(llama)


def test_an_unknown_tensor_is_named(llama: ModelFiles) -> None:
    rewrite(llama, {"model.layers.0.self_attn.bonus": torch.zeros(3)})
    with pytest.raises(BrokenModelError, match=r"model\.layers\.0\.self_attn\.bonus"):
        load(llama)


def test_a_config_that_cannot_be_read_is_an_error_for_people(llama: ModelFiles) -> None:
    (Path(llama.folder) / "config.json").write_text('{"model_type": "no-such-kind"}')
    with pytest.raises(BrokenModelError, match="config"):
        load(llama)


def test_tied_embeddings_stay_one_storage(tmp_path: Path) -> None:
    served = load(make_checkpoint("llama-tied", tmp_path))
    table = served.module.get_parameter("model.embed_tokens.weight")
    assert served.module.get_parameter("lm_head.weight") is table
    assert served.weights_bytes == served.facts.parameters * 4


def test_weights_take_the_asked_dtype_but_for_those_the_model_keeps_wide(tmp_path: Path) -> None:
    served = load(make_checkpoint("deepseek-v3", tmp_path), torch.bfloat16)
    assert {parameter.dtype for parameter in served.module.parameters()} == {torch.bfloat16}
    stored = dict(served.module.named_buffers())["model.layers.1.mlp.gate.e_score_correction_bias"]
    assert stored.dtype == torch.float32


def test_bfloat16_answers_are_near_those_of_float32(llama: ModelFiles) -> None:
    tokens, every = torch.arange(1, 31), torch.arange(30)

    def logits(model: ServedModel) -> torch.Tensor:
        context = PlainAttentionContext(model.facts, [(SequenceCache(), 0, 30)])
        return model.forward(tokens, every, torch.full((30,), 30), every, context)

    wide, narrow = logits(load(llama)), logits(load(llama, torch.bfloat16))
    assert narrow.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(wide, narrow, dim=-1).min() > 0.99


def test_the_starter_s_gguf_answers_as_transformers_own_reading_of_it(
    starter: ModelFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    # transformers asks for this table once per module, which takes longer than all the rest.
    monkeypatch.setattr(gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map))
    served = load(starter)
    tokens = [1, 504, 2365, 282, 4649, 314, 253, 1789, 30, 198]
    every = torch.arange(len(tokens))
    context = PlainAttentionContext(served.facts, [(SequenceCache(), 0, len(tokens))])
    given = served.forward(torch.tensor(tokens), every, torch.full_like(every, len(tokens)), every, context)
    answer = decode(served, [tokens], 12, chunk=4)[0]
    reference = dequantized(starter)
    with torch.inference_mode():
        expected = reference(torch.tensor([tokens])).logits[0]
        whole = reference(torch.tensor([tokens + answer])).logits[0]
    assert (given - expected).abs().max() < 1e-3
    assert whole[len(tokens) - 1 : -1].argmax(-1).tolist() == answer


def dequantized(files: ModelFiles) -> PreTrainedModel:
    """transformers' own reading of a GGUF file, as plain float32 tensors."""
    config = AutoConfig.from_pretrained(files.folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
        empty = AutoModelForCausalLM.from_config(config)
    tensors = load_gguf_checkpoint(files.weights[0], return_tensors=True, model_to_load=empty)["tensors"]
    model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its frequencies stayed on meta
    return model.eval()
