"""Latent attention: which modules are served from latents, which keep their own way, and that weights are kept once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.models.deepseek_v3 import modeling_deepseek_v3
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention

from backend.surgery.describe import describe
from backend.surgery.latent import Expansion, LatentAttention, LatentForm
from backend.surgery.load import load_model
from backend.surgery.model import ServedModel
from backend.surgery.pack import pack_model
from kvcache.layout import Keeps, LayerCache
from quant.cpu.team import Team
from quant.weight_format import WEIGHT_FORMATS
from tests.fakes.attention_context import PlainAttentionContext, SequenceCache
from tests.fakes.tiny_models import FAMILIES, make_checkpoint, reference_model

LENGTH = 20
LATENT_FAMILIES = ["deepseek-v2", "deepseek-v2-lite", "deepseek-v3", "glm4-moe-lite", "minicpm3"]
EXPANDED = LayerCache(Keeps.FULL, None, kv_heads=4, key_size=24, value_size=12)


def load(family: str, folder: Path, dtype: torch.dtype = torch.float32) -> ServedModel:
    files = make_checkpoint(family, folder)
    return load_model(files, dtype=dtype, device=torch.device("cpu"), on_progress=lambda done, total: None)


def logits(model: ServedModel) -> Tensor:
    tokens, every = torch.arange(1, LENGTH + 1), torch.arange(LENGTH)
    context = PlainAttentionContext(model.facts, [(SequenceCache(), 0, LENGTH)])
    return model.forward(tokens, every, torch.full((LENGTH,), LENGTH), every, context)


def latent_modules(model: ServedModel) -> list[LatentAttention]:
    return [module for module in model.module.modules() if isinstance(module, LatentAttention)]


@pytest.mark.parametrize("family", LATENT_FAMILIES)
def test_families_are_served_from_latents(family: str, tmp_path: Path) -> None:
    model = load(family, tmp_path)
    assert len(latent_modules(model)) == len(model.facts.layers)
    assert {layer.keeps for layer in model.facts.layers} == {Keeps.LATENT}


@pytest.mark.parametrize("family", ["Youtu", "AXK1"])
def test_others_of_the_same_structure_are_recognised(family: str) -> None:
    sizes: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    parts: dict[str, Any] = {"qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6, "head_dim": 4}
    tokens: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    kind = getattr(transformers, f"{family}Config")
    facts = describe(kind(**sizes, **parts, **tokens, num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=12))
    assert set(facts.layers) == {LayerCache(Keeps.LATENT, None, 1, 12 + 4, 12)}


class ScaledLatent(DeepseekV3Attention):
    def expand_kv(self, kv_nope: Tensor, k_rot: Tensor) -> tuple[Tensor, Tensor]:
        return super().expand_kv(kv_nope * 1.5, k_rot)


class ClampedLatent(DeepseekV3Attention):
    def expand_kv(self, kv_nope: Tensor, k_rot: Tensor) -> tuple[Tensor, Tensor]:
        return super().expand_kv(kv_nope.clamp(-0.7, 0.7), k_rot)


class BentKeys(DeepseekV3Attention):
    def expand_kv(self, kv_nope: Tensor, k_rot: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = super().expand_kv(kv_nope, k_rot)
        return torch.tanh(keys), values


class NoRotation(DeepseekV3Attention):
    def forward(self, hidden_states: Tensor, position_embeddings: Any, *given: Any, **more: Any) -> Any:
        cos, sin = position_embeddings
        return super().forward(hidden_states, (torch.ones_like(cos), torch.zeros_like(sin)), *given, **more)


class OneMoreLinear(DeepseekV3Attention):
    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.gate_proj = nn.Linear(self.hidden_size, 1)

    def forward(self, hidden_states: Tensor, *given: Any, **more: Any) -> Any:
        answer = super().forward(hidden_states, *given, **more)
        return answer[0] * torch.sigmoid(self.gate_proj(hidden_states)), answer[1]


@pytest.mark.parametrize("imposter", [ScaledLatent, ClampedLatent, BentKeys, NoRotation, OneMoreLinear])
def test_what_only_looks_like_it_keeps_its_own_forward_and_expanded_keys(
    imposter: type[nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modeling_deepseek_v3, "DeepseekV3Attention", imposter)
    model = load("deepseek-v3", tmp_path)
    assert latent_modules(model) == []
    assert set(model.facts.layers) == {EXPANDED}
    reference = reference_model(make_checkpoint("deepseek-v3", tmp_path))
    with torch.no_grad():
        expected = reference(torch.arange(1, LENGTH + 1)[None]).logits[0]
    assert (logits(model) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("interleaved", [True, False])
def test_both_orders_of_rotation_are_served(interleaved: bool) -> None:
    config: Any = FAMILIES["deepseek-v3"]()
    config.rope_interleave = interleaved
    assert {layer.keeps for layer in describe(config).layers} == {Keeps.LATENT}


def test_products_over_latents_equal_those_over_expanded_keys_and_values() -> None:
    form = LatentForm(rank=16, rope=8, nope=6, value=5, rotation="halves", scaling=1.0)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(3 * (6 + 5), 16, generator=generator)
    latents, query = torch.randn(7, 16, generator=generator), torch.randn(7, 3, 6, generator=generator)
    expanded = (latents @ weight.T).unflatten(-1, (3, 11))  # [T, heads, nope + value]
    served = Expansion(nn.Parameter(weight, requires_grad=False), 3, form)
    placed = torch.full((7, 3, 16 + 8), torch.nan)
    served.to_latents(query, placed[..., :16])
    torch.testing.assert_close(
        torch.einsum("thr,sr->hts", placed[..., :16], latents),
        torch.einsum("thd,shd->hts", query, expanded[..., :6]),
        atol=1e-4,
        rtol=1e-4,
    )
    assert placed[..., 16:].isnan().all()
    values = served.to_values(latents.unsqueeze(1).expand(-1, 3, -1))
    torch.testing.assert_close(values, expanded[..., 6:].flatten(1), atol=1e-4, rtol=1e-4)


def test_in_bfloat16_the_answer_is_near_that_of_float32(tmp_path: Path) -> None:
    """No nearer than a model of this size can be: the family's own forward in bfloat16 is as far off."""
    low, full = logits(load("deepseek-v2-lite", tmp_path, torch.bfloat16)), logits(load("deepseek-v2-lite", tmp_path))
    own: Any = reference_model(make_checkpoint("deepseek-v2-lite", tmp_path))
    own.to(torch.bfloat16)
    with torch.no_grad():
        theirs = own(torch.arange(1, LENGTH + 1)[None]).logits[0].float()
    assert (low - full).norm() <= 1.5 * (theirs - full).norm()


def test_weights_are_kept_once_before_and_after_packing(tmp_path: Path) -> None:
    model = load("deepseek-v3", tmp_path)
    assert model.weights_bytes == model.facts.parameters * 4
    expansion: Any = latent_modules(model)[0].get_submodule("kv_b_proj")
    before = logits(model)
    where = expansion.weight.data_ptr()
    packed = pack_model(model, WEIGHT_FORMATS["model"], team=Team(1))
    torch.testing.assert_close(logits(packed), before, rtol=1e-4, atol=1e-4)
    assert expansion.weight.data_ptr() == where  # both products read it in place
    assert packed.weights_bytes <= model.weights_bytes * 1.2  # packed linears have their columns filled up
