"""FetchedModel: the folder of a model of which this machine has only some tensors: files of the model's own layout with
holes, and a journal of what in them is true. Filling them is `tensor_fetch`'s.

    fetched/DIGEST/lock       held by who fetches
    fetched/DIGEST/journal    what has been checked
    fetched/DIGEST/weights/   the files with holes: apart from config.json, so that nobody takes this for a whole model
    fetched/DIGEST/texts/     config and tokenizer
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from backend.hardware.peer_store import boot_id
from backend.library.files import ModelFiles
from pipeline_ext.range_set import RangeSet
from pipeline_ext.tensor_journal import JournalLine, TensorJournal
from pipeline_ext.tensor_offer import TensorOffer, fetched_home

_LOOK_SECONDS = 0.2


class FetchedModel:
    """Made by `locked`: one process of this machine has it at a time."""

    def __init__(self, folder: Path, offer: TensorOffer) -> None:
        self._offer = offer
        self._paths = [folder / "weights" / file.name for file in offer.weights]
        self._texts = folder / "texts"
        self._paths += [self._texts / text.name for text in offer.texts]
        for sub in ("weights", "texts"):
            (folder / sub).mkdir(mode=0o700, exist_ok=True)
        sizes = [file.size for file in (*offer.weights, *offer.texts)]
        whole = all(
            path.is_file() and path.stat().st_size == size for path, size in zip(self._paths, sizes, strict=True)
        )
        self._descriptors = [_opened(path, size) for path, size in zip(self._paths, sizes, strict=True)]
        # Where a file was removed, or made anew after a fault, its lines are not true any more.
        self._journal = TensorJournal(folder / "journal", boot_id() if whole else "", self._content)

    @property
    def files(self) -> ModelFiles:
        """As the loader reads it, which may touch only what has been checked."""
        return ModelFiles(
            name=self._offer.model,
            format=self._offer.format,
            weights=tuple(str(path) for path in self._paths[: len(self._offer.weights)]),
            folder=str(self._texts),
            bytes=sum(file.size for file in self._offer.weights),
        )

    def path(self, file: int) -> Path:
        return self._paths[file]

    def missing(self, file: int, wanted: RangeSet) -> RangeSet:
        """What of the wanted is still a hole, or was never checked."""
        return wanted.without(self._journal.checked(file))

    def keep(self, line: JournalLine, data: bytes | bytearray) -> None:
        """Writes checked bytes to their place. Raises OSError."""
        rest, at = memoryview(data), line.start
        while rest:
            written = os.pwrite(self._descriptors[line.file], rest, at)
            rest, at = rest[written:], at + written
        self._journal.add(line)

    def forget(self, file: int) -> None:
        """What is here of it is not what was offered: it counts as missing from now on."""
        self._journal.forget(file)

    def close(self) -> None:
        self._journal.close()
        for descriptor in self._descriptors:
            os.close(descriptor)

    def _content(self, file: int, start: int, length: int) -> bytes:
        return os.pread(self._descriptors[file], length, start) if file < len(self._descriptors) else b""


@contextmanager
def locked(offer: TensorOffer, while_waiting: Callable[[], None]) -> Iterator[FetchedModel]:
    """The model's folder, made where it lacks, once no other process has it; the system frees the lock of a dead one.

    Raises OSError.
    """
    folder = fetched_home() / offer.digest
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        while not _lock(descriptor):
            while_waiting()
            time.sleep(_LOOK_SECONDS)
        model = FetchedModel(folder, offer)
        try:
            yield model
        finally:
            model.close()
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _opened(path: Path, size: int) -> int:
    """The file, of this size; what was never written is a hole, and takes no room."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if os.fstat(descriptor).st_size != size:
            os.ftruncate(descriptor, size)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
