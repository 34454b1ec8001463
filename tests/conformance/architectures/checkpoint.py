"""Random checkpoints of the shrunken types, strong enough that each part of a model decides its answer."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from backend.library.files import ModelFiles

_GAIN = 0.9
_ATTENTION_GAIN = 3.0
_ATTENTION_OUTPUTS = ("o_proj", "out_proj", "dense.weight", "wo.")
_EXPERT_GAIN = 12.0
# Families scale embeddings by the width, or norm what is added to them: the smaller ones let layers decide there.
_EMBEDDINGS = (1.0, 0.3, 0.1, 0.03)


def random_model(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """A model of the config, in float32 and with eager attention, the same one each time."""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    randomize(model, seed)
    return model


def save(model: PreTrainedModel, folder: Path) -> ModelFiles:
    """Writes the model to the folder, as a user would find it."""
    model.save_pretrained(folder)
    weights = tuple(str(path) for path in sorted(folder.glob("*.safetensors")))
    size = sum(Path(path).stat().st_size for path in weights)
    return ModelFiles(
        name=model.config.model_type, format="safetensors", weights=weights, folder=str(folder), bytes=size
    )


def load_reference(files: ModelFiles) -> PreTrainedModel:
    """transformers' own model of the checkpoint: float32, eager attention."""
    return AutoModelForCausalLM.from_pretrained(files.folder, dtype=torch.float32, attn_implementation="eager").eval()


@torch.no_grad()
def randomize(model: nn.Module, seed: int) -> None:
    """Values that keep inner activations near 1, with outputs of attention and experts that outweigh the embeddings."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "embed" in name and parameter.dim() > 1:
            parameter.copy_(noise * _EMBEDDINGS[seed % len(_EMBEDDINGS)])
        elif parameter.dim() > 1:
            parameter.copy_(noise * _gain(name) / min(parameter.shape[-2:]) ** 0.5)
        elif "norm" in name and name.endswith("weight"):
            parameter.add_(noise * 0.1)
        else:
            parameter.copy_(noise * 0.2)
    stored = model.state_dict()
    for name, buffer in model.named_buffers():
        if name in stored and buffer.is_floating_point():
            buffer.add_(torch.randn(buffer.shape, generator=generator) * 0.05)
    _clear_padding(model)


def _gain(name: str) -> float:
    if "experts" in name and "down" in name:
        return _EXPERT_GAIN
    return _ATTENTION_GAIN if any(output in name for output in _ATTENTION_OUTPUTS) else _GAIN


def _clear_padding(model: nn.Module) -> None:
    """The embedding of padding is zero in trained models, and some of transformers' own clear it as they load."""
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight[module.padding_idx] = 0
