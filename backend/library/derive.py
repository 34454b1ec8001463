"""Derives, once, what a model lacks: config and tokenizer of a GGUF file, the `tokenizer.json` of an older folder.

transformers does the conversion, and imports torch for it; so it runs in a process of its own (`derive_child`).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from backend.errors import BrokenModelError
from backend.library.atomic import publish_folder, scratch_folder
from backend.library.child import run_child
from backend.library.locations import derived_home

# Part of the key: raise it when derive_child writes something else than before.
_VERSION = 3
_TIMEOUT = 600.0


def derived_folder(source: Path) -> Path:
    """Where the folder derived from `source` lies, made or not. A changed source has another one."""
    path = source.resolve()
    marker = path if path.is_file() else path / "config.json"
    state = marker.stat()
    key = f"{_VERSION}\0{path}\0{state.st_size}\0{state.st_mtime_ns}"
    return derived_home() / hashlib.sha256(key.encode()).hexdigest()[:32]


def derive(source: Path) -> Path:
    """The folder derived from a GGUF file, or from a safetensors folder without a `tokenizer.json`.

    The source must have passed `checks`. Takes some seconds the first time. Raises BrokenModelError.
    """
    target = derived_folder(source)
    if (target / "tokenizer.json").is_file() and (target / "config.json").is_file():
        return target
    with scratch_folder(target.parent) as scratch:
        made = scratch / "model"
        made.mkdir()
        run_child(
            "backend.library.derive_child",
            str(source),
            str(made),
            seconds=_TIMEOUT,
            late=f"Reading the tokenizer of {source} took over {_TIMEOUT:.0f} s.",
            failed=f"The config or tokenizer of {source} cannot be read.",
        )
        if not (made / "tokenizer.json").is_file():
            raise BrokenModelError(
                f"{source} has no tokenizer that can be used.", "transformers made no tokenizer.json of it."
            )
        publish_folder(made, target)
    return target
