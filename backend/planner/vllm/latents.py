"""Multi-head latent attention as vLLM serves it: the copies of weights it makes, and what it keeps. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from backend.planner.fit.known_model import KnownModel
from backend.planner.model_facts import ModelFacts
from backend.planner.vllm.deployment import Version, VllmDeployment, keeps_latents
from kvcache.layout import Keeps
from quant.weight_sizes import LinearShape


@dataclass(frozen=True, slots=True)
class LatentSizes:
    """What a config calls these: heads, kv_lora_rank, qk_rope_head_dim, qk_nope_head_dim, v_head_dim, q_lora_rank."""

    heads: int
    rank: int
    rope: int
    nope: int
    value: int
    query_rank: int

    @property
    def up(self) -> int:
        """Parameters of a layer's kv_b_proj, which makes keys and values of all heads from a latent."""
        return self.heads * (self.nope + self.value) * self.rank


def latent_sizes(facts: ModelFacts) -> LatentSizes | None:
    """Read back from the shapes of linears; None without latents, or where shapes do not tell."""
    slot = next((slot for slot, layer in enumerate(facts.layers) if layer.keeps is Keeps.LATENT), None)
    if slot is None or not facts.query_parameters:
        return None
    layer, heads, queries = facts.layers[slot], facts.heads[slot], facts.query_parameters[slot]
    rank, rope = layer.value_size, layer.key_size - layer.value_size
    for output in _shapes(facts, heads, by_depth=True):
        value = output.depth // heads
        for query in _shapes(facts, heads, by_depth=False):
            nope = query.columns // heads - rope
            up = heads * (nope + value) * rank
            if nope > 0 and query.columns * query.depth + up + output.columns * output.depth == queries:
                return LatentSizes(heads, rank, rope, nope, value, 0 if query.depth == facts.hidden else query.depth)
    return None


def _shapes(facts: ModelFacts, heads: int, by_depth: bool) -> list[LinearShape]:
    """Linears that heads divide: outputs by their depth, queries by their columns."""
    shapes = [shape for shape, _ in facts.linears if not (shape.kept or shape.expert)]
    if by_depth:
        return [shape for shape in shapes if shape.columns == facts.hidden and shape.depth % heads == 0]
    return [shape for shape in shapes if shape.columns % heads == 0]


def copied_bytes(model: KnownModel, deployment: VllmDeployment, packed_element: float) -> int:
    """What all layers of one tensor-parallel rank hold beside the checkpoint's weights.

    From 0.8 on, kv_b_proj once more in the model's dtype as W_UK_T and W_UV (v1/attention/backends/mla/common.py).
    0.7 multiplied matrices with each other instead, in the checkpoint's format: queries with keys
    [q_lora_rank, heads, kv_lora_rank], values with the output [heads, kv_lora_rank, hidden], and queries' rotated part
    (VLLM_MLA_PERFORM_MATRIX_ABSORPTION, on by default).
    """
    sizes = latent_sizes(model.facts)
    if sizes is None or not keeps_latents(model, deployment.version):
        return 0
    layers = sum(layer.keeps is Keeps.LATENT for layer in model.facts.layers)
    if deployment.version >= (0, 8):
        return layers * sizes.up // deployment.tp * deployment.element
    hidden = model.facts.hidden
    inner = sizes.query_rank or hidden
    absorbed = sizes.heads * (inner * (sizes.rank + sizes.rope) + sizes.rank * hidden) // deployment.tp
    return int(layers * absorbed * packed_element)


def stored_elements(key_size: int, version: Version) -> int:
    """Elements of a position's latent as the cache stores it: before 0.8 filled up to a multiple of 128 (PR 14842
    took that away)."""
    return -(-key_size // 128) * 128 if version < (0, 8) else key_size
