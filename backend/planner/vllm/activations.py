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

_MIB = 1 << 20
# fused_moe takes no more tokens at once (VLLM_FUSED_MOE_CHUNK_SIZE, until the workspaces of 0.13, which stay while the
# sampler runs: v1/worker/workspace.py).
_EXPERT_CHUNK = 32768
_WORKSPACES: Version = (0, 13)
# Sequences' logits beside their own dtype, bytes each. Until 0.16 sampling sorts: float32 logits and probabilities,
# int64 indices, and their copies. From 0.17 on it does not: three float32 copies.
_SORTED, _UNSORTED = 36, 12
_SORTS_UNTIL: Version = (0, 17)
# What is left when the above is counted, on GPUs of every size.
_REST_SORTED, _REST = 50 * _MIB, 120 * _MIB
# Hidden states that live through an eager layer of V0: residual, input and output, two where experts write over their
# input; and through a compiled one, whose buffers do not reuse each other.
_HIDDEN_EAGER, _HIDDEN_EAGER_EXPERTS, _HIDDEN_COMPILED = 3, 2, 6
# With images: embeddings to put in, and what the encoder gave, [T, hidden] each; in V1 the dummy's pixels too.
_IMAGE_STATES, _IMAGES = 2, 80 * _MIB
# Encoders that take images as large as they come profile the largest: 16384 tokens of 4 patches. Elements that live for
# a patch: 11 hidden states of 1280, whole; and divided by tensor parallelism, queries, keys and values four times (as
# made, apart, and rotated in float32) and three MLP widths of 3420. Two logs, of TP 1 and 4, hold to it.
_LARGE_IMAGES = {"Qwen2_5_VLForConditionalGeneration": (65536, 11 * 1280, 4 * 3 * 1280 + 3 * 3420)}
_LARGE_IMAGES_FROM: Version = (0, 7)


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
        forward = max(self._forward() + self._images() + (carried if first else 0), self._encoder() if first else 0)
        if not last or not self._samples():
            return forward
        kept = self.states + carried + (self._workspaces() if self.deployment.v1 else 0)
        return max(forward, self._sampler() + kept + (_REST_SORTED if sorts else _REST) + self._images())

    def _samples(self) -> bool:
        """Whether the profiling run samples at full width: V0 gives no token of a divided prompt to the sampler, and
        with images takes as few sequences as have an image each."""
        whole = not self.deployment.chunked_prefill and not self.model.other_parameters
        return self.deployment.v1 or whole

    def _sampler(self) -> int:
        each = (_SORTED if self.deployment.version < _SORTS_UNTIL else _UNSORTED) + self.deployment.element
        return each * self.deployment.max_num_seqs * self.model.facts.vocabulary

    def _forward(self) -> int:
        """A layer's: gate, up and their product of the widest MLP, and hidden states; with experts, theirs."""
        facts, deployment = self.model.facts, self.deployment
        hidden, with_experts = _HIDDEN_EAGER, _HIDDEN_EAGER_EXPERTS
        if deployment.v1:
            hidden = with_experts = _HIDDEN_COMPILED
        dense = max((part.width for part in facts.columns), default=0) / deployment.tp
        mlp = int((hidden * facts.hidden + 3 * dense) * deployment.max_num_batched_tokens * deployment.element)
        return max(mlp, with_experts * self.states + self._workspaces())

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
        return _IMAGE_STATES * self.states + (_IMAGES if self.deployment.v1 else 0)

    def _encoder(self) -> int:
        """The encoder's own peak, with which nothing else is held."""
        if self.deployment.version < _LARGE_IMAGES_FROM:
            return 0
        patches, whole, divided = _LARGE_IMAGES.get(self.model.facts.architecture, (0, 0, 0))
        return int(patches * (whole + divided / self.deployment.tp) * self.deployment.element)
