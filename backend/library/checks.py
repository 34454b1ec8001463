"""Checks that a model is whole, consistent and of a known kind, before any memory is taken for it. No torch.

Whether it fits the machine is the planner's to say; the numbers for that are in the ModelHeader.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from backend.errors import BrokenModelError, UnsupportedModelError
from backend.library.architectures import causal_language_models
from backend.library.files import ModelFiles
from backend.library.folders import INDEX, index_map, read_json
from backend.library.gguf_header import read_gguf_header
from backend.library.header import ModelHeader, TensorEntry
from backend.library.packed import refuse_unreadable
from backend.library.safetensors_header import read_safetensors_header


def check(files: ModelFiles) -> ModelHeader:
    """The model's header, once everything that can be said without reading weights has been checked.

    Raises BrokenModelError for a truncated or inconsistent file, UnsupportedModelError for an unknown architecture.
    """
    model_type, architecture = known_architecture(files.name, Path(files.folder))
    tensors = _gguf(files) if files.format == "gguf" else _safetensors(files)
    if not tensors:
        raise BrokenModelError(f"{files.name} holds no tensors.", hint="Fetch the model again.")
    return ModelHeader(
        model_type,
        architecture,
        tensors,
        parameters=sum(math.prod(tensor.shape) for tensor in tensors),
        bytes=sum(tensor.bytes for tensor in tensors),
    )


def known_architecture(name: str, folder: Path) -> tuple[str, str]:
    """`model_type` and class name of the model whose config.json lies in `folder`.

    Raises BrokenModelError, or UnsupportedModelError where transformers has no such causal language model.
    """
    config = read_json(folder / "config.json")
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise BrokenModelError(f"{name} does not say what it is.", "Its config.json has no model_type.")
    quantization = config.get("quantization_config")
    if isinstance(quantization, dict):
        refuse_unreadable(name, quantization)
    known = causal_language_models()
    if model_type in known:
        return model_type, known[model_type]
    if "auto_map" in config:
        raise UnsupportedModelError(
            f"{name} needs code that comes with the model.",
            f"transformers has no model of the type {model_type!r}, and shardwise never runs code from a repository.",
            "Choose a model that transformers knows.",
        )
    raise UnsupportedModelError(
        f"{name} is of a kind that is not served.",
        f"transformers has no causal language model of the type {model_type!r}.",
        "Choose another model, or a later version of shardwise.",
    )


def _gguf(files: ModelFiles) -> tuple[TensorEntry, ...]:
    return read_gguf_header(Path(files.weights[0])).tensors


def _safetensors(files: ModelFiles) -> tuple[TensorEntry, ...]:
    tensors = [tensor for path in files.weights for tensor in read_safetensors_header(Path(path))]
    found: dict[str, str] = {}
    for tensor in tensors:
        shard = Path(tensor.file).name
        if tensor.name in found:
            raise BrokenModelError(
                f"{files.name} is inconsistent.",
                f"{tensor.name} is in {found[tensor.name]} and again in {shard}.",
            )
        found[tensor.name] = shard
    _match_index(files, found)
    return tuple(tensors)


def _match_index(files: ModelFiles, found: dict[str, str]) -> None:
    index = Path(files.weights[0]).parent / INDEX
    if not index.is_file():
        return
    claimed = index_map(index)
    shards = {Path(path).name for path in files.weights}
    missing = sorted(set(claimed.values()) - shards)
    if missing:
        raise _incomplete(files.name, f"The weight file {missing[0]} is missing.", missing)
    lost = [tensor for tensor, shard in claimed.items() if found.get(tensor) != shard]
    if lost:
        raise _incomplete(files.name, f"{lost[0]} is not in {claimed[lost[0]]}, where the index places it.", lost)


def _incomplete(name: str, why: str, all_of_them: Iterable[str]) -> BrokenModelError:
    count = len(list(all_of_them))
    more = f" ({count - 1} more)" if count > 1 else ""
    return BrokenModelError(f"{name} is not complete.", why + more, "Fetch the model again.")
