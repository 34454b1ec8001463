"""Facts of a model on the hub: its config, and the headers of its weight files by ranges; answers are kept.

Public: remote_facts(name), kept_facts(name). A commit's answer never changes; which commit a branch is at is asked
again after a day.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from msgspec import Struct

from backend.errors import ModelNotFoundError, UnsupportedModelError
from backend.library import folders
from backend.library.facts_store import read_kept, write_kept
from backend.library.file_facts import of_files, of_gguf
from backend.library.hub import Repository, fetch_small, look_up
from backend.library.hub_errors import explained, unreachable
from backend.library.names import HubName
from backend.library.remote_headers import remote_gguf, remote_tensors
from backend.planner.fit.known_model import KnownModel

# Part of the key: raise it when the answer of a commit changes with the code.
_VERSION = 1
_DAY = 86_400.0
# Seconds in which the hub has to answer: a person waits, and the catalogue may know the model.
_PATIENCE = 8.0


class _Branch(Struct, frozen=True):
    """Which commit a revision was at."""

    commit: str


def kept_facts(name: HubName) -> KnownModel | None:
    """What the hub answered before, however long ago; None where it was not asked."""
    branch = read_kept(_key("branch", name, name.revision or "main"), _Branch)
    return None if branch is None else read_kept(_key("commit", name, branch.commit), KnownModel)


def remote_facts(name: HubName) -> KnownModel:
    """The facts of the revision that `name` names.

    Raises ModelNotFoundError, ModelAccessError, DownloadError, BrokenModelError, UnsupportedModelError.
    """
    place = _key("branch", name, name.revision or "main")
    branch = read_kept(place, _Branch, _DAY)
    kept = read_kept(_key("commit", name, branch.commit), KnownModel) if branch else None
    if kept is not None:
        return kept
    with explained(name.repository, name.revision):
        repository = look_up(name, _PATIENCE)
        if repository is None:
            raise unreachable(name.repository, None)
        known = read_kept(_key("commit", name, repository.commit), KnownModel) or _ask(repository)
    write_kept(_key("commit", name, repository.commit), known)
    write_kept(place, _Branch(repository.commit))
    return known


def _key(kind: str, name: HubName, revision: str) -> str:
    from huggingface_hub import constants

    words = (str(_VERSION), kind, constants.ENDPOINT, name.repository, revision, name.file or "")
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:32]


def _ask(repository: Repository) -> KnownModel:
    name, files = str(repository.name), repository.files
    ggufs = sorted(file for file in files if file.endswith(".gguf"))
    if repository.name.file is not None:
        if repository.name.file not in files:
            raise ModelNotFoundError(
                f"{repository.name.repository} has no file {repository.name.file}.",
                f"It has {', '.join(ggufs[:12]) or 'no GGUF files'}.",
            )
        header = remote_gguf(repository, files[repository.name.file])
        return of_gguf(name, header, "the header of the file on the hub")
    if "config.json" not in files:
        if ggufs:
            raise ModelNotFoundError(
                f"{repository.name.repository} has GGUF files only, and none is named.",
                f"It has {', '.join(ggufs[:12])}{' and more' if len(ggufs) > 12 else ''}.",
                f"Name one: {name}:{ggufs[0]}",
            )
        raise folders.no_weights(repository.name.repository, sorted(file for file in files if "/" not in file))
    snapshot = fetch_small(repository, "config.json").parent
    config = folders.read_json(snapshot / "config.json")
    shards = _shards(repository)
    if shards is None:
        known = of_files(name, config, None, "the hub's config; it has no safetensors files")
        why = "It has no safetensors files, and no others are read."
        return replace(known, unserved=known.unserved or why)
    return of_files(name, config, remote_tensors(repository, shards), "the hub's config and headers")


def _shards(repository: Repository) -> list[str] | None:
    """Names of the safetensors files; None where the repository has none that make up a model."""
    top = sorted(file for file in repository.files if "/" not in file)
    if folders.INDEX in top:
        snapshot = fetch_small(repository, folders.INDEX).parent
    else:
        snapshot = fetch_small(repository, "config.json").parent
    try:
        shards = folders.safetensors_weights(snapshot, top)
    except (ModelNotFoundError, UnsupportedModelError):
        return None
    return shards if all(shard in repository.files for shard in shards) else None
