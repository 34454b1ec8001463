"""Facts of a model from its config alone: found by a child that builds it on meta, and kept in the user's cache.

Public: facts_of_config(name, config) -> KnownModel.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import msgspec

from backend.errors import BrokenModelError
from backend.library.child import run_child
from backend.library.facts_store import read_kept, write_kept
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
    told = run_child(
        "backend.library.facts_child",
        seconds=_TIMEOUT,
        late=f"Building {name} from its config took over {_TIMEOUT:.0f} s.",
        failed=f"The config of {name} cannot be read.",
        given=text,
    )
    return _answer(name, told)


def _answer(name: str, text: bytes) -> KnownModel:
    answer = msgspec.json.decode(text)
    if isinstance(answer, list):
        what, why, hint = (str(part).replace("the model", name) for part in answer)
        raise BrokenModelError(what, why, hint)
    return msgspec.convert(answer, KnownModel)
