"""Tiny experts modules of many families, as transformers defines them: every layout, gate and extra that there is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers.models.aria.modeling_aria import AriaExperts
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Experts
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4Experts
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.granitemoe.modeling_granitemoe import GraniteMoeExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.models.muse_spark.modeling_muse_spark import MuseSparkExperts
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts
from transformers.models.openai_privacy_filter.modeling_openai_privacy_filter import OpenAIPrivacyFilterExperts
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

KINDS: dict[str, Any] = {
    "mixtral": MixtralExperts,
    "qwen3-moe": Qwen3MoeExperts,
    "deepseek-v3": DeepseekV3Experts,
    "granite-moe": GraniteMoeExperts,
    "gpt-oss": GptOssExperts,  # transposed, interleaved, biases, a gate of its own
    "privacy-filter": OpenAIPrivacyFilterExperts,  # transposed, concatenated, biases
    "aria": AriaExperts,  # transposed
    "deepseek-v4": DeepseekV4Experts,  # limits
    "nemotron-h": NemotronHExperts,  # no gate
    "muse-spark": MuseSparkExperts,  # a norm over each expert's output
}


def tiny_experts(kind: str, experts: int = 5, hidden: int = 32, inner: int = 48, act: str = "silu") -> Any:
    """Random weights, the same each time; computed by the family's own forward."""
    config = SimpleNamespace(
        num_experts=experts, num_local_experts=experts, n_routed_experts=experts, moe_num_experts=experts,
        hidden_size=hidden, moe_hidden_size=hidden, intermediate_size=inner, moe_intermediate_size=inner,
        hidden_act=act, mlp_hidden_act="relu2", swiglu_alpha=1.702, swiglu_limit=1.0, post_norm_eps=1e-5,
        moe_latent_size=None, _experts_implementation="eager",
    )  # fmt: skip
    module = KINDS[kind](config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / hidden**0.5)
    return module.requires_grad_(False)


def routing(tokens: int, experts: int, active: int, seed: int = 9) -> tuple[Tensor, Tensor]:
    """Distinct random choices of each token [tokens, active], and their weights."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.rand(tokens, experts, generator=generator).argsort(1)[:, :active]
    return index.contiguous(), torch.rand(tokens, active, generator=generator)
