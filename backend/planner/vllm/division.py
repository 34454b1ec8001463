"""Whether vLLM divides a model over so many ranks at all. How much memory that takes is `account`'s. Pure."""

from __future__ import annotations

from backend.planner.fit.known_model import KnownModel
from backend.planner.vllm.deployment import VllmDeployment
from backend.planner.vllm.stages import layer_count
from kvcache.layout import Keeps


def refusal(model: KnownModel, deployment: VllmDeployment) -> str:
    """Why vLLM would refuse, as a sentence; empty where it would not.

    Query heads have to be a multiple of the ranks, KV heads a multiple or a divisor (config/model.py,
    verify_with_parallel_config; layers/linear.py, QKVParallelLinear); each stage needs a layer.
    """
    facts, tp = model.facts, deployment.tp
    for heads, layer in zip(facts.heads, facts.layers, strict=True):
        if heads % tp:
            return f"vLLM divides {heads} query heads only over ranks that divide them; {tp} do not."
        kv_heads = layer.kv_heads
        if layer.keeps is not Keeps.LATENT and (kv_heads % tp if kv_heads >= tp else tp % kv_heads):
            return f"vLLM divides or copies {kv_heads} KV heads evenly; {tp} ranks cannot have them so."
    if deployment.pp > layer_count(model):
        return f"{deployment.pp} stages are more than the model's {layer_count(model)} layers."
    return ""
