"""Facts of well-known models as describe finds them, for plans without files. Sizes are those of their configs."""

from __future__ import annotations

from typing import Any

from backend.planner.model_facts import Columns, ExpertColumns, ModelFacts
from kvcache.layout import Keeps, LayerCache


def dense(
    layers: int, hidden: int, heads: int, kv_heads: int, width: int, vocabulary: int, tied: bool = False, **more: Any
) -> ModelFacts:
    """A Llama-like model with heads of 128 elements. `more`: further fields of ModelFacts."""
    size = more.pop("size", 128)
    query, key = 2 * hidden * heads * size, 2 * hidden * kv_heads * size
    words = vocabulary * hidden * (1 if tied else 2)
    columns = () if not width else (Columns(width, 3 * hidden * width * layers),)
    fields: dict[str, Any] = {
        "architecture": "LlamaForCausalLM",
        "layers": (LayerCache(Keeps.FULL, None, kv_heads, size, size),) * layers,
        "heads": (heads,) * layers,
        "hidden": hidden,
        "intermediate": width,
        "vocabulary": vocabulary,
        "max_positions": 131_072,
        "native_dtype": "bfloat16",
        "query_parameters": (query,) * layers,
        "key_parameters": (key,) * layers,
        "columns": columns,
        "vocabulary_parameters": words,
        "output_parameters": vocabulary * hidden,
        "experts": (),
    } | more
    divided = (query + key) * layers + words + sum(part.parameters for part in (*columns, *fields["experts"]))
    parameters = divided + (2 * layers + 1) * hidden
    fields = {"layer_parameters": ((parameters - words - hidden) // layers,) * layers} | fields
    return ModelFacts(parameters=parameters, **fields)


STARTER = dense(30, 576, 9, 3, 1536, 49152, tied=True, size=64, max_positions=8192)
LLAMA_8B = dense(32, 4096, 32, 8, 14336, 128_256)
LLAMA_70B = dense(80, 8192, 64, 8, 28672, 128_256)
QWEN3_30B_A3B = dense(
    48, 2048, 32, 4, 0, 151_936, architecture="Qwen3MoeForCausalLM", intermediate=768 * 8, active_experts=8,
    experts=(ExpertColumns(128, 768, 48 * 128 * 3 * 2048 * 768),),
)  # fmt: skip
