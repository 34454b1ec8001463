"""ServedModel: a transformers model after surgery, as the runner calls it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backend.parallel.quiet_group import QuietGroup
from backend.planner.model_facts import ModelFacts
from backend.surgery.context import AttentionContext
from backend.surgery.rope import RopeLengths
from backend.surgery.stage import ModelStage
from backend.surgery.stage_gates import StageEnd


@dataclass(frozen=True)
class ServedModel:
    """A loaded model whose attention goes to an AttentionContext.

    Attributes:
        module: the causal language model; in eval mode, parameters without gradients.
        facts: its dimensions.
        dtype, device: of weights and activations.
        weights_bytes: bytes that the parameters occupy.
        recompute_lengths: lengths past which a sequence's cached keys stop being right (longrope's switch from short
            to long factors): when a sequence grows past one, it is computed again from its first token.
        scaled_past: the length past which a token's key depends on max(prompt, position + 1) (dynamic NTK), so that
            longer prompts have keys of their own; None where keys depend on tokens and positions alone.
        lengths: where modules look for the pass's positions and rope lengths.
        stream_bytes: what of `weights_bytes` are buffers, through which the hosted layers come.
        hosted: paths of the layers whose weights lie in host memory, in the order of their turns.
        ranks: the group that a divided model computes with; None for a whole one.
        stage: for one stage of several, its place among them; None for all layers.
    """

    module: nn.Module
    facts: ModelFacts
    dtype: torch.dtype
    device: torch.device
    weights_bytes: int
    recompute_lengths: tuple[int, ...]
    scaled_past: int | None
    lengths: RopeLengths
    ranks: QuietGroup | None = None
    hosted: tuple[str, ...] = ()
    stream_bytes: int = 0
    stage: ModelStage | None = None

    @property
    def begins(self) -> bool:
        """Whether it looks tokens up itself; else it needs hidden states with them."""
        return self.stage is None or self.stage.span.begins

    @property
    def ends(self) -> bool:
        """Whether it has logits; else it has hidden states."""
        return self.stage is None or self.stage.span.ends

    @property
    def columns(self) -> int:
        """Elements of one token's hidden states, as stages hand them on."""
        return self.facts.hidden if self.stage is None else self.stage.columns

    def alone(self) -> AbstractContextManager[None]:
        """Inside, the other ranks of a divided model are not asked: for probes that each rank makes by itself."""
        return nullcontext() if self.ranks is None else self.ranks.quiet()

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        rope_lengths: Tensor,
        rows: Tensor,
        context: AttentionContext,
        hidden: Tensor | None = None,
    ) -> Tensor:
        """One pass over flat tokens [T] at positions [T]: float32 logits [len(rows), vocabulary] of the given rows.

        Of a divided model, all ranks call it with the same arguments; only the first gets logits, the others zeros.

        rope_lengths [T]: the length by which each token's length-dependent RoPE variant chooses its frequencies.
        hidden [T, columns]: where a stage does not begin the model, what the one before has handed on, in the model's
        dtype; only the first rank needs to have it. Where it does not end the model, it returns such itself, of all
        tokens and the same on all ranks, which are valid until the next pass.
        """
        self.lengths.positions, self.lengths.lengths = positions, rope_lengths
        with torch.inference_mode():
            if self.stage is not None and not self.stage.span.begins:
                self.stage.receive(hidden, tokens.shape[0], self.dtype, self.device, self.ranks)
            try:
                out = self.module(
                    input_ids=tokens.unsqueeze(0),
                    position_ids=positions.unsqueeze(0),
                    use_cache=False,
                    logits_to_keep=rows,
                    context=context,
                )
            except StageEnd as end:
                if self.stage is None:
                    raise
                return self.stage.hand_on(end, self.dtype)
            return out.logits[0].float()
