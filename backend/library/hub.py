"""Models on the Hugging Face hub: fetched into the Hugging Face cache in place, and found there again.

The layout of the cache is huggingface_hub's; only large files are moved by our `transfer`, into its blobs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from backend.errors import BrokenModelError, ModelNotFoundError
from backend.library import folders
from backend.library.atomic import require_space
from backend.library.checks import known_architecture
from backend.library.hub_errors import connection_error, explained, unreachable
from backend.library.locations import hub_cache
from backend.library.names import HubName
from backend.library.transfer import Progress, Transfer, TransferStoppedError

_SIDE_BY_SIDE = 4
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ALWAYS = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template.jinja", "chat_template.json", folders.INDEX),
)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository; `sha256` is None for a small one that git holds itself."""

    name: str
    size: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Repository:
    """One commit of a repository, and its files by name."""

    name: HubName
    commit: str
    files: dict[str, RemoteFile]


def storage_folder(repository: str) -> Path:
    """The repository's folder in the Hugging Face cache."""
    return hub_cache() / f"models--{repository.replace('/', '--')}"


def installed_snapshot(name: HubName) -> Path | None:
    """The snapshot's folder (or the GGUF file that `name` names) where all of it is in the cache.

    Raises UnsupportedModelError where there are pickles only.
    """
    storage = storage_folder(name.repository)
    revision = name.revision or "main"
    reference = storage / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    if _COMMIT.fullmatch(commit) is None:
        return None
    snapshot = storage / "snapshots" / commit
    if name.file is not None:
        path = snapshot / name.file
        return path if path.is_file() else None
    if not (snapshot / "config.json").is_file():
        return None
    try:
        shards = folders.safetensors_weights(snapshot)
    except ModelNotFoundError:
        return None
    return None if folders.missing_shards(snapshot, shards) else snapshot


def cached_config(name: HubName) -> Path | None:
    """The repository's config.json where the cache has that, whether or not it has the weights."""
    storage, revision = storage_folder(name.repository), name.revision or "main"
    reference = storage / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    path = storage / "snapshots" / commit / "config.json"
    return path if _COMMIT.fullmatch(commit) is not None and path.is_file() else None


def pull_repository(name: HubName, on_progress: Callable[[int, int], None]) -> Path:
    """Fetch what is missing of a repository's model; the snapshot's folder, or the GGUF file that `name` names.

    `on_progress(done, total)` gets bytes summed over all files; never called by two threads at once; may raise to
    stop. Raises ModelNotFoundError, ModelAccessError, DownloadError, UnsupportedModelError, BrokenModelError.
    """
    with explained(name.repository, name.revision):
        repository = look_up(name)
        if repository is not None:
            wanted = _wanted(repository)
            _download(repository, wanted, on_progress)
            _remember(repository)
    place = installed_snapshot(name)
    if place is None:
        raise unreachable(name.repository, None)
    return place


def look_up(name: HubName, seconds: float = 30.0) -> Repository | None:
    """What the hub says of the repository within `seconds`; None where it cannot be asked and the cache has the model.

    Raises what huggingface_hub does, and BrokenModelError for an answer without a commit.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        info = HfApi().model_info(name.repository, revision=name.revision, files_metadata=True, timeout=seconds)
    except HfHubHTTPError:
        raise
    except (OfflineModeIsEnabled, connection_error()):
        if installed_snapshot(name) is None:
            raise
        return None
    if info.sha is None or _COMMIT.fullmatch(info.sha) is None:
        raise BrokenModelError(f"The hub names no commit for {name}.", f"It says {info.sha!r}.", "Check HF_ENDPOINT.")
    files: dict[str, RemoteFile] = {}
    for sibling in info.siblings or ():
        digest = sibling.lfs.sha256 if sibling.lfs is not None else None
        if digest is not None and _SHA256.fullmatch(digest) is None:
            raise BrokenModelError(f"The hub gives no valid digest for {sibling.rfilename} of {name}.")
        files[sibling.rfilename] = RemoteFile(sibling.rfilename, sibling.size or 0, digest)
    return Repository(name, info.sha, files)


def _wanted(repository: Repository) -> list[RemoteFile]:
    """The files that serving needs, and no others."""
    files, name = repository.files, repository.name
    ggufs = sorted(file for file in files if file.endswith(".gguf"))
    if name.file is not None:
        if name.file not in files:
            raise ModelNotFoundError(
                f"{name.repository} has no file {name.file}.", f"It has {', '.join(ggufs) or 'no GGUF files'}."
            )
        return [files[name.file]]
    top = sorted(file for file in files if "/" not in file)
    has_safetensors = any(file.endswith(".safetensors") for file in top)
    if ggufs and not has_safetensors:
        raise ModelNotFoundError(
            f"{name.repository} has GGUF files only, and none is named.",
            f"It has {', '.join(ggufs[:12])}{' and more' if len(ggufs) > 12 else ''}.",
            f"Name one: {name}:{ggufs[0]}",
        )
    if "config.json" not in files or not has_safetensors:
        raise folders.no_weights(name.repository, top)
    snapshot = fetch_small(repository, "config.json").parent
    # Before gigabytes arrive that nothing here could serve.
    known_architecture(str(name), snapshot)
    if folders.INDEX in files:
        fetch_small(repository, folders.INDEX)
    shards = folders.safetensors_weights(snapshot, top)
    lost = [shard for shard in shards if shard not in files]
    if lost:
        raise BrokenModelError(f"{name.repository} is not complete on the hub.", f"{lost[0]} is missing there.")
    tokenizer = () if "tokenizer.json" in files else folders.OLDER_TOKENIZERS
    return [files[file] for file in (*_ALWAYS, *tokenizer, *shards) if file in files]


def fetch_small(repository: Repository, file: str) -> Path:
    """One of the repository's small files, in the Hugging Face cache; fetched where it is not there."""
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repository.name.repository, file, revision=repository.commit))


def _download(repository: Repository, wanted: list[RemoteFile], on_progress: Callable[[int, int], None]) -> None:
    storage = storage_folder(repository.name.repository)
    snapshot = storage / "snapshots" / repository.commit
    needed = sum(_missing_bytes(storage, snapshot, file) for file in wanted)
    if needed:
        require_space(storage, needed + (16 << 20), repository.name.repository)
    progress, stop = Progress(sum(file.size for file in wanted), on_progress), Event()
    with ThreadPoolExecutor(_SIDE_BY_SIDE, thread_name_prefix="pull") as pool:
        tasks = [pool.submit(_fetch, repository, file, progress, stop) for file in wanted]
        try:
            wait(tasks, return_when=FIRST_EXCEPTION)
        finally:
            # Also when this thread is interrupted: the others must not download on behind its back.
            stop.set()
            for task in tasks:
                task.cancel()
    errors = [error for task in tasks if not task.cancelled() and (error := task.exception()) is not None]
    # The error that stopped the others, rather than one of theirs.
    for error in sorted(errors, key=lambda error: isinstance(error, TransferStoppedError))[:1]:
        raise error


def _missing_bytes(storage: Path, snapshot: Path, file: RemoteFile) -> int:
    if (snapshot / file.name).is_file() or (file.sha256 and (storage / "blobs" / file.sha256).is_file()):
        return 0
    partial = _partial(storage, file)
    return file.size - (partial.stat().st_size if partial is not None and partial.is_file() else 0)


def _partial(storage: Path, file: RemoteFile) -> Path | None:
    # Named so that huggingface_hub's own tools take it for what it is.
    return storage / "blobs" / f"{file.sha256}.shardwise.incomplete" if file.sha256 else None


def _fetch(repository: Repository, file: RemoteFile, progress: Progress, stop: Event) -> None:
    """Bring one file into the snapshot: its blob by our transfer where it is large, the rest by huggingface_hub."""
    from huggingface_hub import hf_hub_download

    if stop.is_set():
        raise TransferStoppedError
    repository_name = repository.name.repository
    present = (storage_folder(repository_name) / "snapshots" / repository.commit / file.name).is_file()
    if not present and file.sha256 is not None:
        _fetch_blob(repository, file, file.sha256, progress, stop)
    else:
        progress.add(0)
    hf_hub_download(repository_name, file.name, revision=repository.commit)
    if present or file.sha256 is None:
        progress.add(file.size)


def _fetch_blob(repository: Repository, file: RemoteFile, sha256: str, progress: Progress, stop: Event) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    storage = storage_folder(repository.name.repository)
    blobs = storage / "blobs"
    lock = hub_cache() / ".locks" / storage.name / f"{sha256}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    transfer = Transfer(
        url=hf_hub_url(repository.name.repository, file.name, revision=repository.commit),
        headers=build_hf_headers(),
        partial=blobs / f"{sha256}.shardwise.incomplete",
        target=blobs / sha256,
        size=file.size,
        sha256=sha256,
    )
    # huggingface_hub's own lock, so that two processes share one download.
    with WeakFileLock(lock):
        transfer.run(progress, stop)


def _remember(repository: Repository) -> None:
    """Point the revision at the commit only now that all of it is here: until then an older one stays in use."""
    revision = repository.name.revision or "main"
    if revision == repository.commit:
        return
    reference = storage_folder(repository.name.repository) / "refs" / revision
    reference.parent.mkdir(parents=True, exist_ok=True)
    fresh = reference.with_name(f".{reference.name}.{os.getpid()}")
    fresh.write_text(repository.commit)
    os.replace(fresh, reference)
