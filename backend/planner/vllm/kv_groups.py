"""Groups of layers that share a table of blocks, as vLLM makes them, and the bytes of a block. Pure.

Public: kv_groups(model, deployment) -> KvGroups. After vllm/v1/core/kv_cache_utils.py: a model of one kind of layers
is one group; of several kinds, each is cut into groups of as many layers as the smallest kind has, the last one filled
up. A block then holds `block_size` tokens of one group's layers, and all groups draw from one pool.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from backend.planner.fit.known_model import KnownModel
from backend.planner.vllm.deployment import Version, VllmDeployment, keeps_latents
from backend.planner.vllm.latents import latent_sizes, stored_elements
from backend.planner.vllm.stages import attention_slots, layer_count, stage_ranges
from kvcache.layout import Keeps, LayerCache

# V0 kept keys and values of latent attention in heads of 256 elements (models/deepseek_v2.py of 0.5).
_DECOMPRESSED_HEAD = 256
# A state page's attention blocks grow in steps of this many tokens (platforms/interface.py; FlashAttention's kernels).
_BLOCK_STEP = 16
# Architectures whose state is kept in float32 beside its short convolution (`mamba_ssm_dtype` in their configs).
_FLOAT32_STATES = ("Qwen3_5", "Qwen3Next", "NemotronH", "FalconH1")


@dataclass(frozen=True, slots=True)
class KvKind:
    """Layers that keep alike: how many, what window, and bytes of a token (or, of a state, of a sequence).

    `block_tokens` is set by `kv_groups`: where tokens take less, a block has more of them.
    """

    layers: int
    window: int | None
    chunked: bool
    token_bytes: int
    state: bool = False
    block_tokens: int = 1

    def kept(self, step_tokens: int) -> int:
        """Positions of a sequence that windowed layers keep at most, those of a step included."""
        window = self.window or 0
        return window + step_tokens - (0 if self.chunked else 1)


@dataclass(frozen=True, slots=True)
class KvGroups:
    """How one rank's pool is cut.

    Attributes:
        kinds: of all layers of the model.
        size: layers of a group: as many tensors as the pool has. groups: of each kind.
        block_tokens: of a block of attention.
        block_bytes: of one layer's block.
        stage_layers: tensors of each stage's pool.
    """

    kinds: tuple[KvKind, ...]
    size: int
    groups: tuple[int, ...]
    block_tokens: int
    block_bytes: int
    stage_layers: tuple[int, ...]

    @property
    def layers_billed(self) -> int:
        return self.size * sum(self.groups)

    def blocks(self, pool: int, stage: int) -> int:
        """Blocks that `pool` bytes of a stage's rank hold."""
        layers = self.stage_layers[stage]
        return max(0, pool) // (layers * self.block_bytes) if layers and self.block_bytes else 0

    def tokens(self, blocks: int) -> int:
        """What logs of vLLM before 0.20 call the size of the cache: each group's part of the blocks."""
        return blocks // max(1, sum(self.groups)) * self.block_tokens

    def blocks_of(self, length: int, step_tokens: int) -> int:
        """Blocks that one sequence of `length` positions holds at most, over all groups."""
        return sum(groups * self._kind_blocks(kind, length, step_tokens) for kind, groups in self._pairs())

    def _pairs(self) -> list[tuple[KvKind, int]]:
        return list(zip(self.kinds, self.groups, strict=True))

    def _kind_blocks(self, kind: KvKind, length: int, step_tokens: int) -> int:
        if kind.state:
            return 1
        kept = min(length, kind.kept(step_tokens)) if kind.window is not None else length
        # One block more, because a window may start inside of one (SlidingWindowSpec.max_memory_usage_bytes).
        return -(-kept // kind.block_tokens) + (kind.window is not None and not kind.chunked)

    def largest(self, blocks: int, limit: int, step_tokens: int) -> int:
        """The longest sequence, of `limit` positions at most, that `blocks` hold; 0 where none does.

        What a sequence takes grows in straight lines that bend where a window is full: each line is solved.
        """
        if self.blocks_of(limit, step_tokens) <= blocks:
            return limit
        bends = {min(limit, kind.kept(step_tokens)) for kind in self.kinds if kind.window is not None} | {limit}
        found = [self._on_line(bend, blocks, step_tokens) for bend in bends]
        return max((length for length in found if self.blocks_of(length, step_tokens) <= blocks), default=0)

    def _on_line(self, bend: int, blocks: int, step_tokens: int) -> int:
        """The longest sequence on the line that ends at `bend`, counted in the coarsest group's blocks."""
        growing = [
            (kind, groups)
            for kind, groups in self._pairs()
            if not kind.state and (kind.window is None or kind.kept(step_tokens) >= bend)
        ]
        if not growing:
            return 0
        step = max(kind.block_tokens for kind, _ in growing)
        rounds = -(-bend // step)
        each = sum(groups * -(-step // kind.block_tokens) for kind, groups in growing)
        fixed = self.blocks_of(rounds * step, step_tokens) - rounds * each
        return max(0, min(bend, (blocks - fixed) // each * step))


def kv_groups(model: KnownModel, deployment: VllmDeployment) -> KvGroups:
    """The groups of the whole model, and what each stage has of them."""
    tokens, kinds = deployment.block_size, _kinds(model, deployment)
    state = max((kind.token_bytes for kind in kinds if kind.state), default=0)
    widest = max((kind.token_bytes for kind in kinds if not kind.state), default=0)
    if state and widest:
        # Attention's block grows until it is no smaller than a state, which is filled up to it.
        tokens = max(tokens, -(-math.ceil(state / widest) // _BLOCK_STEP) * _BLOCK_STEP)
    page = widest * tokens if widest else state
    kinds = tuple(
        replace(kind, block_tokens=1 if kind.state else tokens * max(1, widest // max(1, kind.token_bytes)))
        for kind in kinds
    )
    size = _group_size([kind.layers for kind in kinds], deployment.version)
    groups = tuple(-(-kind.layers // size) for kind in kinds) if len(kinds) > 1 else (1,) * len(kinds)
    return KvGroups(kinds, size, groups, tokens, page, _stage_layers(model, deployment, kinds, groups))


def _group_size(layers: list[int], version: Version) -> int:
    """The smallest kind's count, or the largest's where that fills up little (by a quarter from 0.11 on, by a half
    from 0.20 on)."""
    if not layers:
        return 0
    near = 1.5 if version >= (0, 20) else 1.25 if version >= (0, 11) else 1.0
    return max(layers) if max(layers) < near * min(layers) or len(layers) == 1 else min(layers)


def _kinds(model: KnownModel, deployment: VllmDeployment) -> tuple[KvKind, ...]:
    """Kinds of layers; V0, and V1 before 0.9.2, keep windowed layers as they keep whole ones."""
    windows = deployment.v1 and deployment.version >= (0, 9, 2)
    counted: dict[tuple[int | None, bool, int], int] = {}
    for layer in model.facts.layers:
        window = layer.window if windows else None
        key = (window, windows and layer.keeps is Keeps.CHUNKED, _token_bytes(model, layer, deployment))
        counted[key] = counted.get(key, 0) + 1
    if len({window for window, _, _ in counted}) == 1:
        # One kind of different widths: one group, each layer with its own bytes.
        total = sum(size * count for (_, _, size), count in counted.items())
        layers = sum(counted.values())
        ((window, chunked, _), *_rest) = counted
        counted = {(window, chunked, total // layers): layers}
    kinds = [KvKind(count, window, chunked, size) for (window, chunked, size), count in counted.items()]
    kinds += [
        KvKind(part.count, None, False, _state_bytes(model, part.bytes, deployment), True) for part in model.states
    ]
    return tuple(kinds)


def _token_bytes(model: KnownModel, layer: LayerCache, deployment: VllmDeployment) -> int:
    """Bytes of a position in one layer on one rank; heads are copied where ranks outnumber them."""
    element = deployment.kv_element
    if layer.keeps is not Keeps.LATENT:
        kept = -(-layer.kv_heads // deployment.tp)
        return kept * (layer.key_size + layer.value_size) * element
    if keeps_latents(model, deployment.version):
        return stored_elements(layer.key_size, deployment.version) * element
    sizes = latent_sizes(model.facts)
    heads = -(-(sizes.heads if sizes else 1) // deployment.tp)
    return 2 * heads * _DECOMPRESSED_HEAD * element


def _state_bytes(model: KnownModel, size: int, deployment: VllmDeployment) -> int:
    wide = deployment.element == 2 and model.facts.architecture.startswith(_FLOAT32_STATES)
    return size * (2 if wide else 1) // deployment.tp


def _stage_layers(
    model: KnownModel, deployment: VllmDeployment, kinds: tuple[KvKind, ...], groups: tuple[int, ...]
) -> tuple[int, ...]:
    """Tensors of each stage's pool: its layers of the group that has most of them there."""
    stages = stage_ranges(layer_count(model), deployment.pp)
    if deployment.pp == 1:
        return (_group_size([kind.layers for kind in kinds], deployment.version),)
    if len(kinds) == 1:
        states = bool(model.states)
        return tuple(len(layers) if states else len(attention_slots(model, layers)) for layers in stages)
    whole = max(1, layer_count(model))
    return tuple(
        max(math.ceil(kind.layers * len(layers) / whole / count) for kind, count in zip(kinds, groups, strict=True))
        for layers in stages
    )
