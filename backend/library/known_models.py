"""From a model's name to all that is known of it, before a weight is downloaded: what is here, the hub, the catalogue.

Public: known_model(name, offline=False) -> KnownModel. What follows of a config and of headers is `file_facts`' to
say, what is on the hub `remote_facts`'.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from backend.errors import BrokenModelError, DownloadError, ModelAccessError, ModelNotFoundError, ShardwiseError
from backend.library import folders
from backend.library.config_facts import facts_of_config
from backend.library.derive import derive
from backend.library.file_facts import of_files, of_gguf
from backend.library.gguf_header import read_gguf_header
from backend.library.hub import cached_config, installed_snapshot
from backend.library.model_table import find_in_catalogue, known_from_catalogue, nearest_names
from backend.library.names import FolderName, GgufName, HubName, ModelName, StarterName, parse
from backend.library.remote_facts import kept_facts, remote_facts
from backend.library.safetensors_header import read_safetensors_header
from backend.library.starter import installed_starter
from backend.library.stored_weights import stored_gguf
from backend.planner.fit.known_model import KnownModel, StoredWeights

_STARTER_ROW = "HuggingFaceTB/SmolLM2-135M-Instruct"
# Of its file's tensors: what the file has less its header.
_STARTER_BYTES = 96_576_768


def known_model(name: str, *, offline: bool = False) -> KnownModel:
    """The model's facts. Reads headers and configs, never weights.

    What is on this machine comes first. Then the hub, whose answers are kept; the catalogue where the hub cannot be
    reached, does not give the model out, or `offline` says not to ask it. `source` says which it was.

    Raises:
        ModelNotFoundError: nobody knows it; with names that look alike.
        ModelAccessError: it is gated or private, and the catalogue does not have it.
        DownloadError: the hub cannot be reached, and nothing else knows the model.
        BrokenModelError: a config that tells too little, or a header that contradicts itself.
    """
    if name.endswith(".json") and Path(name).expanduser().is_file():
        return _of_config_file(name, Path(name).expanduser())
    match _parsed(name):
        case KnownModel() as known:
            return known
        case StarterName():
            return _starter(name)
        case GgufName(path):
            return _gguf(name, path)
        case FolderName(path):
            return _folder(name, path)
        case HubName() as hub_name:
            return _on_hub(name, hub_name, offline)


def _parsed(name: str) -> ModelName | KnownModel:
    """What the name means; of a name that is neither a path nor a repository's, what the catalogue knows."""
    try:
        return parse(name)
    except ModelNotFoundError as error:
        known = known_from_catalogue(name)
        if known is not None:
            return known
        raise _with_nearest(error, name) from None


def _starter(name: str) -> KnownModel:
    path = installed_starter()
    if path is not None:
        return _gguf(name, path)
    known = known_from_catalogue(_STARTER_ROW)
    if known is None:
        raise ModelNotFoundError(f"The catalogue lacks {_STARTER_ROW}.", hint="Install shardwise again.")
    stored = StoredWeights("gguf:Q4_1", _STARTER_BYTES)
    return replace(known, name=name, stored=stored, source="the catalogue; it is not fetched yet")


def _on_hub(name: str, hub_name: HubName, offline: bool) -> KnownModel:
    here = _installed(name, hub_name)
    if here is not None:
        return here
    if not offline:
        try:
            return replace(remote_facts(hub_name), name=name)
        except (DownloadError, ModelAccessError) as error:
            known = kept_facts(hub_name) or _from_catalogue(name, error) or _cached(name, hub_name)
            if known is None:
                raise _with_nearest(error, name) from None
            return replace(known, name=name)
        except ModelNotFoundError as error:
            row = find_in_catalogue(name)
            if row is None or name not in (row.id, *row.aliases):
                raise _with_nearest(error, name) from None
            # A mirror that lacks it, or a repository that has moved.
            known = row.known(name)
            return replace(known, source=f"{known.source}; the hub has no repository of that name")
    known = known_from_catalogue(name) or kept_facts(hub_name) or _cached(name, hub_name)
    if known is None:
        raise _with_nearest(
            ModelNotFoundError(
                f"{hub_name} is not known offline.",
                "It is neither on this machine nor in the catalogue, and the hub is not asked.",
                "Ask again without --offline.",
            ),
            name,
        )
    return replace(known, name=name)


def _from_catalogue(name: str, error: ShardwiseError) -> KnownModel | None:
    known = known_from_catalogue(name)
    if known is None:
        return None
    why = f"{error.what} {error.hint}" if isinstance(error, ModelAccessError) else "the hub was not reached"
    return replace(known, source=f"{known.source}; {why}")


def _cached(name: str, hub_name: HubName) -> KnownModel | None:
    """Facts of a repository of which the Hugging Face cache has the config."""
    path = cached_config(hub_name) if hub_name.file is None else None
    return None if path is None else _of_config_file(name, path)


def _installed(name: str, hub_name: HubName) -> KnownModel | None:
    """Facts of a repository that is in the Hugging Face cache."""
    try:
        place = installed_snapshot(hub_name)
    except ShardwiseError:
        return None
    if place is None:
        return None
    return _gguf(name, place) if place.is_file() else _folder(name, place)


def _folder(name: str, folder: Path) -> KnownModel:
    gguf = folders.only_gguf(name, folder)
    if gguf is not None:
        return _gguf(name, gguf)
    path = folders.config_of(name, folder)
    config = folders.read_json(path)
    if not any(folder.glob("*.safetensors*")):
        return _of_config_file(name, path)
    shards = folders.complete_shards(name, folder)
    tensors = [tensor for shard in shards for tensor in read_safetensors_header(folder / shard)]
    return of_files(name, config, tensors, "its config and the headers of its files")


def _of_config_file(name: str, path: Path) -> KnownModel:
    return of_files(name, folders.read_json(path), None, "its config alone")


def _gguf(name: str, path: Path) -> KnownModel:
    header = read_gguf_header(path)
    try:
        known = facts_of_config(name, folders.read_json(derive(path) / "config.json"))
    except BrokenModelError:
        return of_gguf(name, header, "the header of the file")
    return replace(known, stored=stored_gguf(header), source="the header of the file")


def _with_nearest(error: ShardwiseError, name: str) -> ShardwiseError:
    """The error, with names that look alike in its hint."""
    near = nearest_names(name)
    if not near:
        return error
    hint = f"Did you mean {' or '.join(near)}?"
    return type(error)(error.what, error.why, f"{hint} {error.hint}".strip())
