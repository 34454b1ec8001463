"""Which kinds of causal language model transformers knows: read from its source, since importing it imports torch."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

_TABLE = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"


@cache
def causal_language_models() -> Mapping[str, str]:
    """From `model_type` (llama) to transformers' class name (LlamaForCausalLM)."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        raise ImportError("transformers is not installed")
    source = Path(spec.origin).parent / "models" / "auto" / "modeling_auto.py"
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == _TABLE and isinstance(node, ast.Assign | ast.AnnAssign):
            return MappingProxyType(_pairs(node.value))
    raise ImportError(f"this version of transformers has no {_TABLE}")


def _pairs(table: ast.expr | None) -> dict[str, str]:
    """The pairs of `OrderedDict([("llama", "LlamaForCausalLM"), ...])`; of several classes, the first."""
    pairs: dict[str, str] = {}
    for entry in ast.walk(table) if table is not None else ():
        if not isinstance(entry, ast.Tuple) or len(entry.elts) != 2:
            continue
        key, value = entry.elts
        if isinstance(value, ast.Tuple) and value.elts:
            value = value.elts[0]
        if isinstance(key, ast.Constant) and isinstance(value, ast.Constant):
            pairs.setdefault(str(key.value), str(value.value))
    return pairs
