"""Which parameter of a transformers model each GGUF tensor holds, by the gguf package's own tables."""

from __future__ import annotations

from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
from transformers import PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import TensorProcessor

from backend.errors import UnsupportedModelError


def gguf_names(model: PreTrainedModel, architecture: str, processor: TensorProcessor) -> dict[str, str]:
    """From GGUF tensor names to the model's, before surgery.

    `architecture` is the file's `general.architecture`.

    Raises:
        UnsupportedModelError: gguf knows no such architecture.
    """
    known = {name: arch for arch, name in MODEL_ARCH_NAMES.items()}
    if architecture not in known:
        raise UnsupportedModelError(
            f"GGUF files of architecture {architecture} cannot be read yet.",
            "The gguf package has no table of their tensor names.",
            "Use the safetensors files of the same model.",
        )
    table = get_tensor_name_map(known[architecture], model.config.get_text_config().num_hidden_layers)
    names: dict[str, str] = {}
    prefix = f"{model.base_model_prefix}."
    for full in model.state_dict():
        # Some tables name tensors of the base model, without the prefix of the causal language model.
        for candidate in (full, full.removeprefix(prefix)):
            name, suffix = _split(processor.preprocess_name(candidate))
            found = table.get_name(name)
            if found is not None:
                names.setdefault(found + suffix, full)
                break
            processor.perform_fallback_tensor_mapping(names, suffix, "", full)
    return names


def _split(name: str) -> tuple[str, str]:
    stem, _, last = name.rpartition(".")
    return (stem, f".{last}") if last in ("weight", "bias") else (name, "")
