"""Reads a GGUF file's tensors one by one, dequantized, under the names and in the layouts that transformers expects."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from transformers import PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

from backend.errors import BrokenModelError
from backend.library.files import ModelFiles
from backend.surgery.gguf_names import gguf_names
from backend.surgery.places import Places

# Tensors that llama.cpp works out from the config and stores beside the weights.
_DERIVED = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def read_gguf(model: PreTrainedModel, files: ModelFiles) -> Callable[[Places, Callable[[int, int], None]], None]:
    """Prepares reading for a model before surgery; the function returned fills the places of the operated model."""
    reader = GGUFReader(files.weights[0])
    field = reader.get_field("general.architecture")
    architecture = "" if field is None else str(field.contents())
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=model.config.to_dict())
    names = gguf_names(model, architecture, processor)

    def read(places: Places, on_progress: Callable[[int, int], None]) -> None:
        total = sum(int(tensor.n_bytes) for tensor in reader.tensors)
        done = 0
        on_progress(done, total)
        gathered: dict[str, dict[str, torch.Tensor]] = {"tensors": {}}
        for tensor in reader.tensors:
            if tensor.name not in _DERIVED:
                weights = dequantize(tensor.data, tensor.tensor_type)
                result = processor.process(
                    weights=weights, name=tensor.name, tensor_key_mapping=names, parsed_parameters=gathered
                )
                if result.name is not None:
                    name = names.get(result.name)
                    if name is None:
                        raise BrokenModelError(
                            f"{files.name} has a tensor that the model does not know.", f"It is called {tensor.name}."
                        )
                    places.fill(name, torch.from_numpy(np.array(result.weights)))
            done += int(tensor.n_bytes)
            on_progress(done, total)
        for name, value in gathered["tensors"].items():
            places.fill(name, value)

    return read
