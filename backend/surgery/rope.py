"""Rotary embeddings whose frequencies depend on a sequence's length, computed per token so that sequences stay apart.

Variants with fixed frequencies (default, linear, yarn, llama3) need nothing of this and stay transformers' own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from backend.surgery.refusal import unsupported

_BY_LENGTH = ("dynamic", "longrope")


@dataclass(frozen=True, slots=True)
class RopeRegimes:
    """How a model's keys depend on lengths, beside tokens and positions.

    recompute_lengths: when a sequence grows past one of these, all of its keys change (longrope switches factors).
    scaled_past: when the longer of prompt and position + 1 is past it, a token's key depends on just that number
        (dynamic NTK); None where no key does.
    """

    recompute_lengths: tuple[int, ...] = ()
    scaled_past: int | None = None


class RopeLengths:
    """Holds one pass's positions [T] and rope lengths [T]; set by the model's forward, read by modules that ask."""

    def __init__(self) -> None:
        self.positions: Tensor | None = None
        self.lengths: Tensor | None = None


class LengthRope(nn.Module):
    """A rotary module of a length-dependent variant: cos and sin [1, T, dim] from each token's own rope length."""

    def __init__(self, frequencies: Callable[[Tensor], Tensor], scaling: float, lengths: RopeLengths) -> None:
        """frequencies: from lengths [T] to inverse frequencies [T, dim / 2]."""
        super().__init__()
        self._frequencies, self._scaling, self._lengths = frequencies, scaling, lengths

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        lengths = self._lengths.lengths
        if lengths is None:
            raise RuntimeError("rope lengths were not set for this pass")
        angles = position_ids[..., None].float() * self._frequencies(lengths)  # [1, T, dim / 2]
        both = torch.cat((angles, angles), dim=-1)
        return (both.cos() * self._scaling).to(x.dtype), (both.sin() * self._scaling).to(x.dtype)


def replace_rope(model: nn.Module, config: PreTrainedConfig, lengths: RopeLengths) -> RopeRegimes:
    """Replaces the rotary modules whose variant looks at lengths."""
    recompute: set[int] = set()
    scaled: set[int] = set()
    for path, module in list(model.named_modules()):
        kind = getattr(module, "rope_type", None)
        if isinstance(kind, dict):
            if any(name in _BY_LENGTH for name in kind.values()):
                raise unsupported(config, "its layer types have rotary embeddings of their own that depend on length")
        elif kind in _BY_LENGTH:
            own: Any = module.config
            scaling: Any = module.attention_scaling
            if kind == "dynamic":
                frequencies = _dynamic(own)
                scaled.add(int(own.max_position_embeddings))
            else:
                frequencies = _longrope(own)
                recompute.add(int(own.rope_parameters["original_max_position_embeddings"]))
            model.set_submodule(path, LengthRope(frequencies, float(scaling), lengths))
    return RopeRegimes(tuple(sorted(recompute)), min(scaled, default=None))


def _dynamic(config: Any) -> Callable[[Tensor], Tensor]:
    """NTK scaling: the base grows with the length, once that is past the positions the model was made for."""
    rope = config.rope_parameters
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = int(head * rope.get("partial_rotary_factor", 1.0))
    factor, limit = float(rope["factor"]), config.max_position_embeddings

    def frequencies(lengths: Tensor) -> Tensor:
        grown = factor * lengths.clamp(min=limit).float() / limit - (factor - 1)
        base = rope["rope_theta"] * grown ** (size / (size - 2))
        exponents = torch.arange(0, size, 2, device=lengths.device).float() / size
        return 1.0 / base[:, None] ** exponents

    return frequencies


def _longrope(config: Any) -> Callable[[Tensor], Tensor]:
    """Two sets of factors: one up to the positions of pretraining, one for longer sequences."""
    limit = int(config.rope_parameters["original_max_position_embeddings"])
    initialize = ROPE_INIT_FUNCTIONS["longrope"]
    cpu = torch.device("cpu")
    short, _ = initialize(config, cpu, seq_len=limit)
    long, _ = initialize(config, cpu, seq_len=limit + 1)
    tables: dict[torch.device, Tensor] = {}

    def frequencies(lengths: Tensor) -> Tensor:
        if lengths.device not in tables:
            tables[lengths.device] = torch.stack((short, long)).to(lengths.device)
        return tables[lengths.device][(lengths > limit).long()]

    return frequencies
