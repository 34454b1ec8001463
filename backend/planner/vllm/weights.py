"""Weights of one rank of each stage, as vLLM counts them after loading. Steps and pools are others'.

Public: stage_weights(model, deployment) -> bytes of a rank, by stage.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from backend.planner.fit.known_model import KnownModel
from backend.planner.fit.packings import Packing, packing
from backend.planner.model_facts import ModelFacts
from backend.planner.vllm.allocator import rounding
from backend.planner.vllm.deployment import VllmDeployment
from backend.planner.vllm.latents import copied_bytes, latent_sizes
from backend.planner.vllm.stages import layer_count, stage_part, stage_ranges
from kvcache.layout import Keeps
from quant.weight_sizes import LinearShape

# vocab_parallel_embedding.py: DEFAULT_VOCAB_PADDING_SIZE.
_VOCABULARY_MULTIPLE = 64
# MoonViT's attention is whole on each rank (moonvit.py, ReplicatedLinear), 35% of it; other image encoders are divided.
_WHOLE_ENCODER = {"KimiVLForConditionalGeneration": 0.35}


def stage_weights(model: KnownModel, deployment: VllmDeployment) -> tuple[int, ...]:
    """Bytes of each stage's rank 0.

    Linears as they are packed, K and V as often as ranks outnumber their heads; the vocabulary filled up to 64 rows;
    norms, routers and projections to latents whole; tables of cosines; encoders on the first stage; and what torch's
    allocator rounds up.
    """
    facts, stages = model.facts, stage_ranges(layer_count(model), deployment.pp)
    inside = _layers(model, deployment)
    table, output = _vocabulary(facts, deployment)
    given = []
    for stage, layers in enumerate(stages):
        held = int(inside * stage_part(model, layers)) + _rotation(model) * deployment.element
        if stage == 0:
            held += table + _encoders(model, deployment)
        if stage == deployment.pp - 1:
            held += output if stage == 0 or output else table
        given.append(held)
    return tuple(given)


def _rotation(model: KnownModel) -> int:
    """Elements of the tables of cosines and sines: as known, else one of the longest context."""
    layers, positions = model.facts.layers, model.facts.max_positions
    if model.rope_elements or not layers:
        return model.rope_elements
    sizes = {layer.key_size - layer.value_size if layer.keeps is Keeps.LATENT else layer.key_size for layer in layers}
    return positions * sum(sizes)


def _vocabulary(facts: ModelFacts, deployment: VllmDeployment) -> tuple[int, int]:
    """Bytes of a rank's part of the embedding and of the output layer; 0 for an output layer that is the embedding."""
    rows = -(-facts.vocabulary // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE // deployment.tp
    table = rows * facts.hidden * deployment.element
    own = facts.vocabulary_parameters > facts.output_parameters or not facts.vocabulary_parameters
    return table, table if own else 0


def _encoders(model: KnownModel, deployment: VllmDeployment) -> int:
    """Encoders stay in the dtype: quantized checkpoints leave them out."""
    whole = _WHOLE_ENCODER.get(model.facts.architecture, 0.0)
    return int(model.other_parameters * deployment.element * (whole + (1 - whole) / deployment.tp))


def _layers(model: KnownModel, deployment: VllmDeployment) -> int:
    """Bytes of all decoder layers on one tensor-parallel rank."""
    facts, chosen = model.facts, packing(deployment.packing)
    up = _up_projections(facts)
    linears = sum(
        _linear_bytes(model, deployment, chosen, shape) * count * _share(facts, deployment, shape)
        for shape, count in facts.linears
        if not shape.kept
    )
    inside = sum(shape.columns * (shape.depth + shape.bias) * count for shape, count in facts.linears)
    table = facts.vocabulary_parameters - facts.output_parameters
    others = max(0, facts.parameters - inside - max(0, table) - up) * deployment.element
    bits = _bits(chosen, deployment)
    copies = copied_bytes(model, deployment, bits / 8) + int(up * bits / 8) // deployment.tp
    return int(linears) + others + copies + sum(map(rounding, _tensors(model, deployment, bits / 8)))


def _up_projections(facts: ModelFacts) -> int:
    """Parameters of all layers' kv_b_proj, which are no linears of a served model."""
    sizes = latent_sizes(facts)
    return sizes.up * sum(layer.keeps is Keeps.LATENT for layer in facts.layers) if sizes else 0


def _bits(chosen: Packing, deployment: VllmDeployment) -> float:
    """Bits of a parameter of attention and of MLPs."""
    dense = packing(chosen.others) if chosen.others else chosen
    return deployment.element * 8 if dense.weight is None else dense.bits


def _linear_bytes(model: KnownModel, deployment: VllmDeployment, chosen: Packing, shape: LinearShape) -> float:
    """On average over the layers that have it: some may be left out of packing."""
    facts = model.facts
    if shape.expert and chosen.name.startswith("mxfp4"):
        shape = _filled_expert(facts, deployment, shape)
    packed = chosen.linear_bytes(shape, deployment.element)
    plain = shape.columns * (shape.depth + shape.bias) * deployment.element
    return packed + (plain - packed) * excluded_part(model, _names(facts, shape))


def excluded_part(model: KnownModel, words: tuple[str, ...]) -> float:
    """The part of layers whose modules of these names stay in the dtype, as the checkpoint's config lists them: by
    layer ("model.layers.0.mlp.up_proj") or for all ("re:.*self_attn.*")."""
    named = [name for name in model.stored.excluded if any(word in name for word in words)]
    found = [re.search(r"\blayers\.(\d+)\b", name) for name in named]
    if not all(found):
        return 1.0
    return len({layer[1] for layer in found if layer}) / max(1, layer_count(model))


def _names(facts: ModelFacts, shape: LinearShape) -> tuple[str, ...]:
    """Words in names of modules that have such a linear."""
    if shape.expert:
        return (".experts",)
    widths = {part.width for part in facts.columns}
    return (".mlp", "feed_forward", "shared") if shape.columns in widths or shape.depth in widths else ("attn",)


def _filled_expert(facts: ModelFacts, deployment: VllmDeployment, shape: LinearShape) -> LinearShape:
    """An MXFP4 expert with both sizes filled up for its kernel (quantization/mxfp4.py, create_weights).

    Marlin and FlashInfer take the hidden size in 256 and a rank's columns in 128 (in 256 on compute capability 10);
    the Triton kernel, which Hopper ran from 0.11.1 to 0.16, columns in 64. The result is of the whole expert.
    """
    ranks = 1 if deployment.expert_parallel else deployment.tp
    if (0, 11, 1) <= deployment.version < (0, 17) and deployment.capability == (9, 0):
        multiple = 64
    else:
        multiple = 256 if deployment.capability and deployment.capability[0] == 10 else 128
    hidden = _fill(facts.hidden, 256)
    if shape.depth == facts.hidden and shape.columns != facts.hidden:
        half = _fill(-(-shape.columns // 2 // ranks), multiple) * ranks
        return LinearShape(2 * half, hidden, shape.bias, expert=True)
    return LinearShape(hidden, _fill(-(-shape.depth // ranks), multiple) * ranks, shape.bias, expert=True)


def _fill(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _share(facts: ModelFacts, deployment: VllmDeployment, shape: LinearShape) -> float:
    """The part of a linear that one rank has."""
    if shape.expert:
        return 1 / deployment.expert_ranks
    if shape.depth == facts.hidden:
        heads = [
            layer.kv_heads
            for layer in facts.layers
            if shape.columns in (layer.kv_heads * layer.key_size, layer.kv_heads * layer.value_size)
        ]
        if heads and shape.columns not in _query_columns(facts):
            return max(1 / deployment.tp, 1 / heads[0])
    sizes = latent_sizes(facts)
    if (
        sizes is not None
        and shape.depth in (facts.hidden, sizes.query_rank)
        and not _divided(facts, shape, sizes.heads)
    ):
        return 1.0
    return 1 / deployment.tp


def _query_columns(facts: ModelFacts) -> set[int]:
    return {heads * layer.key_size for heads, layer in zip(facts.heads, facts.layers, strict=True)}


def _divided(facts: ModelFacts, shape: LinearShape, heads: int) -> bool:
    """Of linears beside latents: queries of all heads, MLPs and the output are divided; projections to latents and
    what an indexer has are not."""
    sizes = latent_sizes(facts)
    assert sizes is not None
    queries, values = heads * (sizes.nope + sizes.rope), heads * sizes.value
    output = (shape.columns, shape.depth) == (facts.hidden, values)
    return output or shape.columns == queries or shape.columns in {part.width for part in facts.columns}


def _tensors(model: KnownModel, deployment: VllmDeployment, element: float) -> Iterator[int]:
    """Bytes of the large tensors of all layers as vLLM merges them: QKV, output, gate with up, down, and experts."""
    facts, tp = model.facts, deployment.tp
    for heads, layer in zip(facts.heads, facts.layers, strict=True):
        if layer.keeps is Keeps.LATENT:
            continue
        kept = max(1, layer.kv_heads // tp)
        rows = heads * layer.key_size // tp + kept * (layer.key_size + layer.value_size)
        yield int(rows * facts.hidden * element)
        yield int(heads * layer.value_size // tp * facts.hidden * element)
    for part in facts.columns:
        size = part.width // tp * facts.hidden
        for _ in range(part.parameters // max(1, 3 * part.width * facts.hidden)):
            yield int(2 * size * element)
            yield int(size * element)
