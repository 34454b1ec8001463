"""ModelFiles: where a model lies on disk, ready to be read. Finding and fetching it is `resolve`'s and `pull`'s."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class ModelFiles(Struct, frozen=True, kw_only=True):
    """A model that is wholly on disk.

    Attributes:
        name: as the user gave it; what clients call it.
        format: how the weights are stored.
        weights: absolute paths of the safetensors shards, or of one GGUF file.
        folder: absolute path of a folder with `config.json`, `tokenizer.json`, `tokenizer_config.json` and, where the
            model has one, `generation_config.json` and `chat_template.jinja`. For GGUF it is derived once from the
            file and kept in our cache; for a safetensors model it is the model's own folder where it has a
            `tokenizer.json`, else a derived one.
        bytes: size of the weight files.
    """

    name: str
    format: Literal["safetensors", "gguf"]
    weights: tuple[str, ...]
    folder: str
    bytes: int
