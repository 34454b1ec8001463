"""From the name of a model to its files: `resolve` for what is here, `pull` to fetch what is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from backend.errors import BrokenModelError, ModelNotFoundError
from backend.library import folders
from backend.library.derive import derive
from backend.library.files import ModelFiles
from backend.library.names import STARTER, FolderName, GgufName, HubName, StarterName, parse
from backend.library.starter import fetch_starter, installed_starter

OnProgress = Callable[[int, int], None]


def resolve(name: str) -> ModelFiles:
    """The files of a model that is on this machine; never downloads.

    Raises ModelNotFoundError (with the command that fetches it), BrokenModelError or UnsupportedModelError.
    """
    match parse(name):
        case StarterName():
            path = installed_starter()
            if path is None:
                raise ModelNotFoundError(
                    "The starter model has not been fetched yet.",
                    hint=f"Run `shardwise pull {STARTER}` (93 MB).",
                )
            return _gguf(name, path)
        case GgufName(path):
            return _gguf(name, path)
        case FolderName(path):
            return _folder(name, path)
        case HubName() as hub_name:
            from backend.library.hub import installed_snapshot

            place = installed_snapshot(hub_name)
            if place is None:
                raise ModelNotFoundError(
                    f"{hub_name} is not in the Hugging Face cache, or not all of it is.",
                    hint=f"Run `shardwise pull {hub_name}`.",
                )
            return _gguf(name, place) if place.is_file() else _folder(name, place)


def pull(name: str, on_progress: OnProgress) -> ModelFiles:
    """The files of a model, fetched where they are missing; what is here already is not fetched again.

    `on_progress(done, total)` gets bytes of the whole model, from any thread but never from two at once, and may
    raise to stop the download; what has arrived is kept. Raises as `resolve`, and ModelAccessError, DownloadError.
    """
    match parse(name):
        case StarterName():
            fetch_starter(on_progress)
        case HubName() as hub_name:
            from backend.library.hub import pull_repository

            pull_repository(hub_name, on_progress)
        case FolderName() | GgufName():
            pass
    return resolve(name)


def _gguf(name: str, path: Path) -> ModelFiles:
    from backend.library.gguf_header import read_gguf_header

    # Before transformers parses it: every count in it must fit the file.
    read_gguf_header(path)
    return ModelFiles(
        name=name, format="gguf", weights=(str(path),), folder=str(derive(path)), bytes=path.stat().st_size
    )


def _with_tokenizer(name: str, folder: Path) -> Path:
    if (folder / "tokenizer.json").is_file():
        return folder
    if not any((folder / older).is_file() for older in folders.OLDER_TOKENIZERS):
        # transformers would make up an empty one.
        raise BrokenModelError(f"{name} has no tokenizer.", "There is no tokenizer.json.", "Fetch the model again.")
    return derive(folder)


def _folder(name: str, folder: Path) -> ModelFiles:
    gguf = folders.only_gguf(name, folder)
    if gguf is not None:
        return _gguf(name, gguf)
    folders.config_of(name, folder)
    shards = folders.complete_shards(name, folder)
    paths = tuple(str(folder / shard) for shard in shards)
    derived = _with_tokenizer(name, folder)
    size = sum(Path(path).stat().st_size for path in paths)
    return ModelFiles(name=name, format="safetensors", weights=paths, folder=str(derived), bytes=size)
