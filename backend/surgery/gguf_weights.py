"""Reads a GGUF file's tensors one by one, dequantized, under the names and in the layouts that transformers expects."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, dequantize
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

from backend.errors import BrokenModelError
from backend.library.files import ModelFiles
from backend.library.gguf_header import read_gguf_header
from backend.library.header import TensorEntry
from backend.surgery.gguf_names import gguf_names
from backend.surgery.places import Places
from backend.surgery.stage_cut import StageNames

# Tensors that llama.cpp works out from the config and stores beside the weights.
_DERIVED = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
# Plain number types, which need no dequantizing.
_PLAIN = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "F64": np.dtype("<f8")}


def read_gguf(
    model: PreTrainedModel, files: ModelFiles
) -> Callable[[Places, Callable[[int, int], None], StageNames | None], None]:
    """Prepares reading for a model before surgery; the function returned fills the places of the operated model."""
    header = read_gguf_header(Path(files.weights[0]))
    processor = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)(config=model.config.to_dict())
    names = gguf_names(model, header.architecture, processor)

    def read(places: Places, on_progress: Callable[[int, int], None], stage: StageNames | None = None) -> None:
        # Experts' gate and up arrive apart; transformers' processors put them together here.
        gathered: dict[str, dict[str, Tensor]] = {"tensors": {}}
        tensors = [entry for entry in header.tensors if stage is None or _is_on(stage, names, entry.name)]
        total, done = sum(entry.bytes for entry in tensors), 0
        on_progress(done, total)
        data = np.asarray(np.memmap(files.weights[0], dtype=np.uint8, mode="r"))
        for entry in tensors:
            if entry.name not in _DERIVED:
                result = processor.process(
                    weights=_values(data, entry),
                    name=entry.name,
                    tensor_key_mapping=names,
                    parsed_parameters=gathered,
                )
                if result.name is not None:
                    _fill(places, stage, _target(names, result.name, files), _tensor(result.weights))
            done += entry.bytes
            on_progress(done, total)
        for name, value in gathered["tensors"].items():
            _fill(places, stage, name, value)

    return read


def stage_gguf(model: PreTrainedModel, files: ModelFiles) -> Callable[[StageNames], frozenset[str]]:
    """Prepares, for a model before surgery, asking which of the file's tensors a stage of it reads."""
    header = read_gguf_header(Path(files.weights[0]))
    processor = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)(config=model.config.to_dict())
    names = gguf_names(model, header.architecture, processor)
    every = tuple(entry.name for entry in header.tensors)
    return lambda stage: frozenset(name for name in every if _is_on(stage, names, name))


def _is_on(stage: StageNames, names: dict[str, str], name: str) -> bool:
    """Whether a stage reads the file's tensor; one that belongs to no single place is read by all of them."""
    # Experts' stacks are named without their ending.
    target = names.get(name) or names.get(name.removesuffix(".weight"))
    return target is None or stage.place(target) is not None


def _fill(places: Places, stage: StageNames | None, name: str, value: Tensor) -> None:
    place = name if stage is None else stage.place(name)
    if place is not None:
        places.fill(place, value)


def _target(names: dict[str, str], name: str, files: ModelFiles) -> str:
    if name not in names:
        raise BrokenModelError(f"{files.name} has a tensor that the model does not know.", f"It is called {name}.")
    return names[name]


def _values(data: np.ndarray, entry: TensorEntry) -> np.ndarray:
    """The tensor's numbers, in its shape; a view of the file where they are stored plainly."""
    raw = data[entry.start : entry.start + entry.bytes]
    plain = _PLAIN.get(entry.dtype)
    if plain is not None:
        return raw.view(plain).reshape(entry.shape)
    rows = raw.reshape(*entry.shape[:-1], -1)
    return np.asarray(dequantize(rows, GGMLQuantizationType[entry.dtype])).reshape(entry.shape)


def _tensor(values: np.ndarray) -> Tensor:
    """A torch tensor over a copy where numpy's array is a read-only view of the file."""
    return torch.from_numpy(values if values.flags.writeable and values.flags.c_contiguous else np.array(values))
