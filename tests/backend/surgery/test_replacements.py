"""The modules that surgery puts in place compute what those they replace did, and others are left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import OlmoConfig, PreTrainedConfig
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.gpt_oss.configuration_gpt_oss import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts, GptOssRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mixtral.configuration_mixtral import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from backend.surgery.attention import ServedAttention
from backend.surgery.build import build
from backend.surgery.describe import trace_model
from backend.surgery.experts import run_experts
from backend.surgery.glu import gated_mlp
from backend.surgery.linears import Part, PartLinear, ServedLinear, SharedProduct
from backend.surgery.norm import rms_norm
from backend.surgery.operate import operate
from backend.surgery.rope import RopeLengths
from tests.fakes.tiny_models import FAMILIES


class Mlp(nn.Module):
    """A gated MLP; `swapped` activates the up projection instead of the gate, `summed` adds instead of multiplying."""

    def __init__(self, *, swapped: bool = False, summed: bool = False) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(32, 48, bias=False)
        self.up_proj = nn.Linear(32, 48, bias=False)
        self.down_proj = nn.Linear(48, 32, bias=False)
        self.act_fn = nn.SiLU()
        self._swapped, self._summed = swapped, summed

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_proj(x), self.up_proj(x)
        if self._swapped:
            gate, up = up, gate
        inner = self.act_fn(gate) + up if self._summed else self.act_fn(gate) * up
        return self.down_proj(inner)


def test_a_gated_mlp_is_recognised_with_its_roles() -> None:
    plain, swapped = gated_mlp(Mlp(), "mlp"), gated_mlp(Mlp(swapped=True), "mlp")
    assert plain is not None
    assert swapped is not None
    assert [part.name for part in plain.gate_up.parts] == ["mlp.gate_proj", "mlp.up_proj"]
    assert [part.name for part in swapped.gate_up.parts] == ["mlp.up_proj", "mlp.gate_proj"]


def test_an_mlp_that_computes_something_else_is_left_alone() -> None:
    assert gated_mlp(Mlp(summed=True), "mlp") is None


def test_parts_answer_in_any_order_and_never_with_an_old_product() -> None:
    weight = nn.Parameter(torch.randn(7, 5), requires_grad=False)
    linear = ServedLinear(weight, None, (Part("q", 0, 4), Part("k", 4, 6), Part("v", 6, 7)))
    product = SharedProduct(linear)
    q, k, v = (PartLinear(product, part) for part in linear.parts)
    first, second = torch.randn(3, 5), torch.randn(3, 5)
    assert torch.equal(v(first), first @ weight[6:].T)
    assert torch.equal(q(first), first @ weight[:4].T)
    assert torch.equal(q(second), second @ weight[:4].T)  # k of the first was never asked for
    assert torch.equal(k(second), second @ weight[4:6].T)
    assert torch.equal(k(first), first @ weight[4:6].T)


def test_norms_of_the_families_are_recognised() -> None:
    for kind, offset in ((LlamaRMSNorm, 0.0), (GptOssRMSNorm, 0.0), (Gemma2RMSNorm, 1.0)):
        module: Any = kind(64, eps=1e-5)
        served = rms_norm(module)
        assert served is not None
        assert (served.offset, served.epsilon) == (offset, 1e-5)


def test_other_norms_are_left_alone() -> None:
    class Halved(LlamaRMSNorm):
        def forward(self, hidden_states: Tensor) -> Tensor:
            return super().forward(hidden_states) / 2

    assert rms_norm(nn.LayerNorm(64, bias=False)) is None
    assert rms_norm(Halved(64)) is None


def fill(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)


@torch.no_grad()
def test_grouped_experts_equal_the_family_s_own_loop() -> None:
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_local_experts": 5}
    generator = torch.Generator().manual_seed(9)
    for kind, config in ((MixtralExperts, MixtralConfig(**sizes)), (GptOssExperts, GptOssConfig(**sizes))):
        config._experts_implementation = "eager"
        experts: Any = kind(config)
        fill(experts)
        x = torch.randn(11, 32, generator=generator)
        chosen = torch.stack([torch.randperm(4, generator=generator)[:2] for _ in range(11)])  # expert 4 has no token
        weights = torch.rand(11, 2, generator=generator)
        expected = experts(x, chosen, weights)
        assert torch.allclose(run_experts(experts, x, chosen, weights), expected, atol=1e-5)


def operated_attention(config: PreTrainedConfig) -> nn.Module:
    """The first attention module of a model after surgery."""
    _, traced = trace_model(config)
    model = build(config, torch.float32)
    operate(model, traced, RopeLengths())
    return model.get_submodule(traced.layers[0].name)


@pytest.mark.parametrize("family", ["llama-tied", "qwen2", "qwen3", "gemma2", "gemma3", "mixtral", "granite"])
def test_the_common_attention_is_served_by_ours(family: str) -> None:
    assert isinstance(operated_attention(FAMILIES[family]()), ServedAttention)


def test_attention_that_differs_in_anything_keeps_its_own_module() -> None:
    sizes: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    clamped = OlmoConfig(**sizes, num_attention_heads=2, clip_qkv=8.0)
    neighbours = FAMILIES["cohere2"]()
    partly = FAMILIES["glm4-moe"]()
    assert not isinstance(operated_attention(clamped), ServedAttention)
    assert not isinstance(operated_attention(partly), ServedAttention)  # rotates half of each head
    assert not isinstance(operated_attention(neighbours), ServedAttention)  # rotates neighbours, not halves
    assert not isinstance(operated_attention(FAMILIES["gpt-oss"]()), ServedAttention)  # sinks
    assert not isinstance(operated_attention(FAMILIES["olmo2"]()), ServedAttention)  # norms over whole projections
