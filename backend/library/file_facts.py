"""What a config and the headers of weight files tell together. Which files those are, and fetching them, is others'.

Public: of_files(name, config, tensors, source), of_gguf(name, header, source).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from backend.errors import ShardwiseError
from backend.library.config_facts import facts_of_config
from backend.library.gguf_dimensions import gguf_dimensions
from backend.library.gguf_header import GgufHeader
from backend.library.header import TensorEntry
from backend.library.packed import refuse_unreadable
from backend.library.stored_weights import other_elements, quantization_of, stored_gguf, stored_weights
from backend.planner.fit.compose import known_model_of
from backend.planner.fit.known_model import KnownModel


def of_files(name: str, config: dict[str, Any], tensors: Sequence[TensorEntry] | None, source: str) -> KnownModel:
    """The facts that a config and the tensors of its weight files give; None where there are no headers."""
    known = facts_of_config(name, config)
    stored = stored_weights(config, tensors, len(known.facts.layer_parameters) or len(known.facts.layers))
    others = other_elements(tensors) if tensors is not None else known.other_parameters
    told = source if known.exact else f"{source}; the sizes are those that its fields tell"
    unserved = known.unserved or _unreadable(name, config)
    return replace(known, stored=stored, source=told, other_parameters=others, unserved=unserved)


def _unreadable(name: str, config: dict[str, Any]) -> str:
    quantization = quantization_of(config)
    if quantization is None:
        return ""
    try:
        refuse_unreadable(name, quantization)
    except ShardwiseError as error:
        return f"{error.what} {error.why}"
    return ""


def of_gguf(name: str, header: GgufHeader, source: str) -> KnownModel:
    """The facts that a GGUF file's header gives by itself."""
    known = known_model_of(name, gguf_dimensions(name, header), source=source, stored=stored_gguf(header))
    parameters = sum(math.prod(tensor.shape) for tensor in header.tensors)
    return replace(known, facts=replace(known.facts, parameters=parameters), exact=True)
