"""Which models are installed here, and removing one: ours and the Hugging Face cache's, never files of the user's."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from msgspec import Struct

from backend.errors import ModelNotFoundError, SettingError, ShardwiseError
from backend.library import folders
from backend.library.derive import derived_folder
from backend.library.gguf_header import read_gguf_header
from backend.library.hub import storage_folder
from backend.library.locations import hub_cache
from backend.library.names import STARTER, FolderName, GgufName, HubName, StarterName, parse
from backend.library.starter import installed_starter


class InstalledModel(Struct, frozen=True, kw_only=True):
    """A model that `resolve` finds by its name.

    Attributes:
        name: what to call it.
        format: how its weights are stored.
        bytes: size of its weight files.
        architecture: transformers' class name, or GGUF's own word; empty where its files do not say.
        path: the folder or file it lies in.
    """

    name: str
    format: Literal["safetensors", "gguf"]
    bytes: int
    architecture: str
    path: str


def catalogue() -> list[InstalledModel]:
    """All installed models by name, the starter first. Reads headers only; what is broken or partial is left out."""
    starter = installed_starter()
    found = [_gguf(STARTER, starter)] if starter is not None else []
    repositories: list[InstalledModel] = []
    for storage in hub_cache().glob("models--*--*"):
        repository = storage.name.removeprefix("models--").replace("--", "/", 1)
        for reference in sorted(path for path in (storage / "refs").rglob("*") if path.is_file()):
            revision = reference.relative_to(storage / "refs").as_posix()
            snapshot = storage / "snapshots" / reference.read_text().strip()
            name = repository if revision == "main" else f"{repository}@{revision}"
            if snapshot.is_dir():
                repositories += _snapshot(name, snapshot)
    return [model for model in found if model is not None] + sorted(repositories, key=lambda model: model.name.lower())


def remove(name: str) -> int:
    """Delete an installed model; the bytes that this frees.

    Removes a repository with all its revisions, or one GGUF file of it. Raises SettingError for a folder or file of
    the user's, ModelNotFoundError where there is nothing to remove.
    """
    match parse(name):
        case FolderName(path) | GgufName(path):
            raise SettingError(
                f"{path} is yours, not the library's, so it is left alone.",
                hint="Delete it yourself if you do not need it any more.",
            )
        case StarterName():
            place = installed_starter()
            if place is None:
                raise _not_installed(name)
            return _discard_file(place)
        case HubName() as hub_name:
            return _remove_file(hub_name) if hub_name.file is not None else _remove_repository(hub_name)


def _gguf(name: str, path: Path) -> InstalledModel | None:
    try:
        header = read_gguf_header(path)
    except ShardwiseError:
        return None
    return InstalledModel(
        name=name, format="gguf", bytes=path.stat().st_size, architecture=header.architecture, path=str(path)
    )


def _snapshot(name: str, snapshot: Path) -> list[InstalledModel]:
    ggufs = [
        model
        for path in sorted(snapshot.rglob("*.gguf"))
        if path.is_file() and (model := _gguf(f"{name}:{path.relative_to(snapshot).as_posix()}", path)) is not None
    ]
    try:
        config = folders.read_json(snapshot / "config.json")
        shards = folders.safetensors_weights(snapshot)
    except ShardwiseError:
        return ggufs
    if folders.missing_shards(snapshot, shards):
        return ggufs
    architectures = config.get("architectures")
    return [
        InstalledModel(
            name=name,
            format="safetensors",
            bytes=sum((snapshot / shard).stat().st_size for shard in shards),
            architecture=str(architectures[0]) if isinstance(architectures, list) and architectures else "",
            path=str(snapshot),
        ),
        *ggufs,
    ]


def _remove_repository(name: HubName) -> int:
    storage = storage_folder(name.repository)
    if not storage.is_dir():
        raise _not_installed(str(name))
    if name.revision is not None:
        raise SettingError(
            f"{name} shares its files with other revisions.",
            hint=f"Remove all of them: `shardwise rm {name.repository}`.",
        )
    freed = sum(path.stat().st_size for path in (storage / "blobs").rglob("*") if path.is_file())
    for snapshot in (storage / "snapshots").glob("*"):
        _discard_derived(snapshot)
        for path in snapshot.rglob("*.gguf"):
            _discard_derived(path)
    shutil.rmtree(storage)
    shutil.rmtree(hub_cache() / ".locks" / storage.name, ignore_errors=True)
    return freed


def _remove_file(name: HubName) -> int:
    from backend.library.hub import installed_snapshot

    path = installed_snapshot(name)
    if path is None:
        raise _not_installed(str(name))
    # The snapshot's file is a link to a blob that other snapshots may link to as well.
    blob = path.resolve()
    freed = _discard_file(path)
    storage = storage_folder(name.repository)
    shared = any(other.resolve() == blob for other in (storage / "snapshots").rglob("*.gguf"))
    if not shared and blob.is_relative_to(storage.resolve()):
        blob.unlink(missing_ok=True)
    return 0 if shared else freed


def _discard_file(path: Path) -> int:
    size = path.stat().st_size
    _discard_derived(path)
    path.unlink()
    return size


def _discard_derived(source: Path) -> None:
    try:
        shutil.rmtree(derived_folder(source))
    except OSError:
        return  # nothing was derived from it


def _not_installed(name: str) -> ModelNotFoundError:
    return ModelNotFoundError(f"{name} is not installed.", hint="`shardwise models` lists what is.")
