"""The peak of activations that vLLM's profiling run reaches on each stage. What is beside torch is `overheads`'.

Public: stage_activations(model, deployment) -> bytes of a rank, by stage.

The run takes `max_num_batched_tokens` tokens T through the model and then samples for `max_num_seqs` sequences S.
Coefficients are those of vLLM's own logs (fit.md and the report of llm-d-planner's pull request 205, 86 logs); each
stands for tensors that exist at once, named below.
"""

from __future__ import annotations

from dataclasses import dataclass

from backend.planner.fit.known_model import KnownModel
from backend.planner.vllm.deployment import Version, VllmDeployment
from kvcache.layout import Keeps

_MIB = 1 << 20
# fused_moe takes no more tokens at once (VLLM_FUSED_MOE_CHUNK_SIZE, until the workspaces of 0.13).
_EXPERT_CHUNK = 32768
# Experts' workspaces belong to a manager from 0.13 on: they stay while the sampler runs (v1/worker/workspace.py).
_WORKSPACES: Version = (0, 13)
# Sequences' logits beside their own dtype, bytes each. Until 0.16 sampling sorts: float32 logits and probabilities,
# int64 indices, and their copies. From 0.17 on it does not: three float32 copies.
_SORTED, _UNSORTED = 36, 12
_SORTS_UNTIL: Version = (0, 17)
# What is left when the above is counted, on GPUs of every size.
_REST_SORTED, _REST = 50 * _MIB, 120 * _MIB
# Hidden states that live through an eager layer (V0: residual, input and half of an output), and through a compiled
# one, whose buffers do not reuse each other.
_HIDDEN_EAGER, _HIDDEN_COMPILED = 2.6, 6.0
# Images in V1: embeddings to put in, and what the encoder gave, [T, hidden] each, twice; and the dummy's pixels.
_IMAGE_STATES, _IMAGES = 4, 80 * _MIB
# An image encoder of V0 profiles its largest image in one piece: bytes for each of its parameters (10 logs).
_ENCODER_V0 = 0.9


def stage_activations(model: KnownModel, deployment: VllmDeployment) -> tuple[int, ...]:
    """Bytes of each stage's rank: the last one samples, as every rank of tensor parallelism does."""
    peak = _Peak(model, deployment)
    stages = range(deployment.pp)
    return tuple(peak.of_stage(first=stage == 0, last=stage == deployment.pp - 1) for stage in stages)


@dataclass(frozen=True, slots=True)
class _Peak:
    model: KnownModel
    deployment: VllmDeployment

    @property
    def states(self) -> int:
        """Bytes of [T, hidden]."""
        return self.deployment.max_num_batched_tokens * self.model.facts.hidden * self.deployment.element

    def of_stage(self, first: bool, last: bool) -> int:
        sorts = self.deployment.version < _SORTS_UNTIL
        carried = 0 if first and last else (1 if first else 2) * self.states
        forward = self._forward() + (carried if first else 0)
        if not last or (not self.deployment.v1 and self.deployment.chunked_prefill):
            # V0 gives no token of a divided prompt to the sampler.
            return forward
        kept = self.states + carried
        if self.deployment.version >= _WORKSPACES:
            kept += self._workspaces()
        sampled = self._sampler() + kept + (_REST_SORTED if sorts else _REST) + self._images()
        return max(forward + self._images(), sampled)

    def _sampler(self) -> int:
        each = (_SORTED if self.deployment.version < _SORTS_UNTIL else _UNSORTED) + self.deployment.element
        return each * self.deployment.max_num_seqs * self.model.facts.vocabulary

    def _forward(self) -> int:
        """A layer's: gate, up and their product of the widest MLP, and hidden states; with experts, theirs."""
        facts, deployment = self.model.facts, self.deployment
        tokens, element = deployment.max_num_batched_tokens, deployment.element
        hidden = _HIDDEN_COMPILED if deployment.v1 else _HIDDEN_EAGER
        dense = max((part.width for part in facts.columns), default=0) / deployment.tp
        states = int(hidden * facts.hidden * tokens * element)
        return states + max(int(3 * dense * tokens * element), self._workspaces())

    def _workspaces(self) -> int:
        """Two scratch tensors of fused experts, [tokens, active, max(columns, hidden)] each (fused_moe.py).

        Tokens of all replicas pass the experts of a stage. MXFP4's kernels keep none of this size.
        """
        facts, deployment = self.model.facts, self.deployment
        if not facts.experts or deployment.packing.startswith("mxfp4"):
            return 0
        width = max(part.width for part in facts.experts)
        columns = width if deployment.expert_parallel else width // deployment.tp
        tokens = deployment.max_num_batched_tokens * deployment.dp
        if deployment.version < _WORKSPACES:
            tokens = min(tokens, _EXPERT_CHUNK)
            both = max(2 * columns, facts.hidden) + columns
        else:
            both = max(columns, facts.hidden) + max(2 * columns, facts.hidden)
        return tokens * facts.active_experts * both * deployment.element

    def _images(self) -> int:
        if not self.model.other_parameters:
            return 0
        if self.deployment.v1:
            return _IMAGE_STATES * self.states + _IMAGES
        return 0


def has_latents(model: KnownModel) -> bool:
    return any(layer.keeps is Keeps.LATENT for layer in model.facts.layers)
