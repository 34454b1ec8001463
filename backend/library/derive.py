"""Derives, once, what a model lacks: config and tokenizer of a GGUF file, the `tokenizer.json` of an older folder.

transformers does the conversion, and imports torch for it; so it runs in a process of its own (`derive_child`).
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from backend.errors import BrokenModelError
from backend.library.atomic import publish_folder, scratch_folder
from backend.library.locations import derived_home, source_root

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
        _run_child(source, made)
        if not (made / "tokenizer.json").is_file():
            raise BrokenModelError(
                f"{source} has no tokenizer that can be used.", "transformers made no tokenizer.json of it."
            )
        publish_folder(made, target)
    return target


def _run_child(source: Path, made: Path) -> None:
    inherited = os.environ.get("PYTHONPATH", "")
    environment = {
        **os.environ,
        # -P: a folder named `backend` in the user's working directory must not be imported.
        "PYTHONPATH": os.pathsep.join(part for part in (str(source_root()), inherited) if part),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    command = [sys.executable, "-P", "-m", "backend.library.derive_child", str(source), str(made)]
    try:
        child = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment,
            timeout=_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BrokenModelError(f"Reading the tokenizer of {source} took over {_TIMEOUT:.0f} s.") from error
    if child.returncode != 0:
        lines = child.stderr.decode(errors="replace").strip().splitlines()
        raise BrokenModelError(
            f"The config or tokenizer of {source} cannot be read.",
            lines[-1] if lines else "The reader gave no reason.",
        )
