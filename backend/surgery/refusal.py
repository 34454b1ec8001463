"""Refusing a model by name: one error, with what stands in the way."""

from __future__ import annotations

from transformers import PreTrainedConfig

from backend.errors import UnsupportedModelError


def unsupported(config: PreTrainedConfig, why: str) -> UnsupportedModelError:
    """The error for a model that is refused by name."""
    return UnsupportedModelError(
        f"Models of type {config.model_type} are not served yet.",
        f"What stands in the way: {why}.",
        "Choose a model whose layers see all tokens before them, a window or chunks, such as Llama, Qwen or Mistral.",
    )
