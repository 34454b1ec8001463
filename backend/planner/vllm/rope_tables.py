"""Tables of cosines and sines, which vLLM keeps on each rank and counts among the weights. Pure."""

from __future__ import annotations

from backend.planner.fit.known_model import KnownModel
from backend.planner.vllm.deployment import VllmDeployment
from kvcache.layout import Keeps, LayerCache

# Positions are multiplied by the factor of linear scaling (rotary_embedding/linear_scaling_rope.py). Gemma 3's configs
# scale global layers by 8; sliding ones have a table of their own.
_LINEAR_FACTORS = {"Gemma3ForConditionalGeneration": 8}


def rope_bytes(model: KnownModel, deployment: VllmDeployment) -> int:
    """One table for each way to rotate, [positions, rotated elements] in the model's dtype; layers share it."""
    tables = model.rope_tables or _derived(model)
    return sum(positions * elements for positions, elements in tables) * deployment.element


def _derived(model: KnownModel) -> tuple[tuple[int, int], ...]:
    facts = model.facts
    factor = _LINEAR_FACTORS.get(facts.architecture, 1)
    kinds = {(layer.keeps is Keeps.SLIDING and factor > 1, _rotated(layer)) for layer in facts.layers}
    return tuple((facts.max_positions * (1 if sliding else factor), elements) for sliding, elements in kinds)


def _rotated(layer: LayerCache) -> int:
    return layer.key_size - layer.value_size if layer.keeps is Keeps.LATENT else layer.key_size
