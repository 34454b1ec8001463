"""Facts of a model from its config alone: found by a child that builds it on meta, and kept in the user's cache.

Public: facts_of_config(name, config) -> KnownModel.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import msgspec

from backend.errors import BrokenModelError
from backend.library.facts_store import read_kept, write_kept
from backend.library.locations import source_root
from backend.planner.fit.known_model import KnownModel

# Part of the key: raise it when the child finds something else than before.
_VERSION = 1
_TIMEOUT = 300.0


def facts_of_config(name: str, config: Mapping[str, Any]) -> KnownModel:
    """The facts that follow of the config, under the name.

    Takes some seconds the first time. Raises BrokenModelError for a config that tells too little.
    """
    text = json.dumps(config, sort_keys=True).encode()
    key = _key(text)
    kept = read_kept(key, KnownModel)
    if kept is None:
        kept = _ask_child(name, text)
        write_kept(key, kept)
    return replace(kept, name=name)


def _key(text: bytes) -> str:
    versions = "\0".join([str(_VERSION), version("transformers"), version("torch")])
    return hashlib.sha256(versions.encode() + b"\0" + text).hexdigest()[:32]


def _ask_child(name: str, text: bytes) -> KnownModel:
    inherited = os.environ.get("PYTHONPATH", "")
    environment = {
        **os.environ,
        # -P: a folder named `backend` in the user's working directory must not be imported.
        "PYTHONPATH": os.pathsep.join(part for part in (str(source_root()), inherited) if part),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    command = [sys.executable, "-P", "-m", "backend.library.facts_child"]
    try:
        child = subprocess.run(command, input=text, capture_output=True, env=environment, timeout=_TIMEOUT, check=False)
    except subprocess.TimeoutExpired as error:
        raise BrokenModelError(f"Building {name} from its config took over {_TIMEOUT:.0f} s.") from error
    if child.returncode != 0:
        lines = child.stderr.decode(errors="replace").strip().splitlines()
        raise BrokenModelError(
            f"The config of {name} cannot be read.", lines[-1] if lines else "The reader gave no reason."
        )
    return _answer(name, child.stdout)


def _answer(name: str, text: bytes) -> KnownModel:
    answer = msgspec.json.decode(text)
    if isinstance(answer, list):
        what, why, hint = (str(part).replace("the model", name) for part in answer)
        raise BrokenModelError(what, why, hint)
    return msgspec.convert(answer, KnownModel)
