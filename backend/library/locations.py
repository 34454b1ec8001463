"""Where the library keeps what it fetches and derives; the one place here that reads SHARDWISE_CACHE_HOME."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_home() -> Path:
    """Our folder in the user's cache; may not exist yet."""
    chosen = os.environ.get("SHARDWISE_CACHE_HOME")
    return Path(chosen).expanduser().resolve() if chosen else platformdirs.user_cache_path("shardwise")


def starter_file() -> Path:
    """Where the starter model's GGUF lies once it is fetched."""
    return cache_home() / "starter" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def derived_home() -> Path:
    """The folder of folders derived from models that lack a `config.json` or `tokenizer.json`."""
    return cache_home() / "derived"


def hub_cache() -> Path:
    """The Hugging Face cache, as HF_HOME and HF_HUB_CACHE choose it."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def source_root() -> Path:
    """The folder that our top-level packages lie in."""
    return Path(__file__).resolve().parents[2]
