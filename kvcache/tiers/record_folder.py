"""RecordFolder: the files of a page folder, and nothing that is not theirs. What a record says is `record`'s.

    folder/lock            held by the one server that writes
    folder/3f/3f09...      one file a page: 64 hexadecimal digits of its key, in 256 subfolders
    folder/models/9a...    the name of each namespace's model, for people

A record is written under another name and renamed. It is not synced: what a power failure leaves half written fails
its signature. Every open is relative to the folder and refuses symbolic links, so nothing leads out of it. Last use
is a file's time of modification.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from kvcache.transfer import PageKey

_SUBFOLDER = re.compile(r"[0-9a-f]{2}")
_RECORD = re.compile(r"[0-9a-f]{64}")
_UNFINISHED = re.compile(r"[0-9a-f]{64}\.[0-9]+\.part")
_MODELS = "models"
_LONGEST_NAME = 1024
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class CacheFolderError(ValueError):
    """The folder cannot hold pages. `what`, `why` and `hint` are for people."""

    def __init__(self, what: str, why: str, hint: str) -> None:
        super().__init__("\n".join((what, why, hint)))
        self.what, self.why, self.hint = what, why, hint


@dataclass(frozen=True, slots=True)
class FoundRecord:
    """A record's file as a scan sees it; `used` is its last use in nanoseconds of the wall clock."""

    key: PageKey
    bytes: int
    used: int


class RecordFolder:
    """Safe to use from several threads. Methods raise OSError where the system does, unless they say otherwise."""

    def __init__(self, path: Path, *, create: bool = True) -> None:
        """Raises CacheFolderError where the folder cannot be made or is not only ours to write."""
        self.path = path
        self._root = _open_folder(path, create)
        self._lock: int | None = None
        self._parts = count()

    def close(self) -> None:
        """Gives the lock back; no call follows."""
        if self._lock is not None:
            os.close(self._lock)
        os.close(self._root)

    def lock(self) -> bool:
        """Whether this process is the one that writes, from now until `close`; never waits."""
        if self._lock is not None:
            return True
        try:
            number = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._root)
        except OSError:
            return False
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(number)
            return False
        self._lock = number
        return True

    def scan(self) -> Iterator[FoundRecord]:
        """All records there are. Skips what cannot be looked at."""
        for name, entry in self._entries():
            if not _RECORD.fullmatch(entry.name) or not entry.name.startswith(name):
                continue
            with contextlib.suppress(OSError):
                found = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(found.st_mode):
                    yield FoundRecord(bytes.fromhex(entry.name), found.st_size, found.st_mtime_ns)

    def remove_unfinished(self) -> None:
        """Removes what writers left that ended while they wrote. Only who holds the lock may: nobody writes then."""
        for name, entry in self._entries():
            if _UNFINISHED.fullmatch(entry.name):
                with contextlib.suppress(OSError), self._subfolder(name) as inside:
                    os.unlink(entry.name, dir_fd=inside)

    def has(self, key: PageKey) -> bool:
        """Whether there is something under this key's name; what it is, reading it says."""
        name = key.hex()
        try:
            os.stat(f"{name[:2]}/{name}", dir_fd=self._root, follow_symlinks=False)
        except OSError:
            return False
        return True

    @contextlib.contextmanager
    def open(self, key: PageKey) -> Iterator[tuple[int, int]]:
        """A record to read: its file descriptor and its bytes. Raises OSError also for what is not a file."""
        name = key.hex()
        with self._subfolder(name[:2]) as inside:
            number = os.open(name, _READ, dir_fd=inside)
        try:
            found = os.fstat(number)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "not a file")
            yield number, found.st_size
        finally:
            os.close(number)

    def read(self, number: int, into: memoryview, offset: int) -> bool:
        """Fills `into` from `offset` on; False where the file ends before."""
        while len(into):
            done = os.preadv(number, [into], offset)
            if done == 0:
                return False
            into, offset = into[done:], offset + done
        return True

    def write(self, key: PageKey, parts: Iterable[bytes | memoryview], used: int) -> None:
        """Stores a record with this last use, whole or not at all; an older one of that key is replaced."""
        name = key.hex()
        part = f"{name}.{os.getpid()}{next(self._parts)}.part"
        with contextlib.suppress(FileExistsError):
            os.mkdir(name[:2], 0o700, dir_fd=self._root)
        with self._subfolder(name[:2]) as inside:
            try:
                number = os.open(part, _CREATE, 0o600, dir_fd=inside)
                try:
                    for one in parts:
                        self.append(number, memoryview(one))
                    os.utime(number, ns=(used, used))
                finally:
                    os.close(number)
                os.rename(part, name, src_dir_fd=inside, dst_dir_fd=inside)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(part, dir_fd=inside)
                raise

    def append(self, number: int, data: memoryview) -> None:
        while len(data):
            data = data[os.write(number, data) :]

    def touch(self, key: PageKey, used: int) -> None:
        """Notes the last use."""
        name = key.hex()
        with self._subfolder(name[:2]) as inside:
            os.utime(name, ns=(used, used), dir_fd=inside, follow_symlinks=False)

    def remove(self, key: PageKey) -> None:
        name = key.hex()
        with self._subfolder(name[:2]) as inside:
            os.unlink(name, dir_fd=inside)

    def name_model(self, namespace: bytes, model: str) -> None:
        """Notes for people which model's pages these are."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(_MODELS, 0o700, dir_fd=self._root)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with self._subfolder(_MODELS) as inside:
            number = os.open(namespace.hex(), flags, 0o600, dir_fd=inside)
            with os.fdopen(number, "wb") as file:
                file.write(model.encode()[:_LONGEST_NAME])

    def model_name(self, namespace: bytes) -> str:
        """The model's name as it was noted, printable; empty where none is."""
        try:
            with self._subfolder(_MODELS) as inside:
                number = os.open(namespace.hex(), _READ, dir_fd=inside)
            with os.fdopen(number, "rb") as file:
                text = file.read(_LONGEST_NAME).decode(errors="replace")
        except OSError:
            return ""
        return "".join(character for character in text if character.isprintable())

    def forget_model(self, namespace: bytes) -> None:
        with contextlib.suppress(OSError), self._subfolder(_MODELS) as inside:
            os.unlink(namespace.hex(), dir_fd=inside)

    def namespaces(self) -> list[bytes]:
        """The namespaces whose model has been noted."""
        try:
            with self._subfolder(_MODELS) as inside:
                return [bytes.fromhex(name) for name in os.listdir(inside) if _RECORD.fullmatch(name)]
        except OSError:
            return []

    def _entries(self) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """What lies in the subfolders, each with its subfolder's name."""
        try:
            names = sorted(filter(_SUBFOLDER.fullmatch, os.listdir(self._root)))
        except OSError:
            return
        for name in names:
            with contextlib.suppress(OSError), self._subfolder(name) as inside, os.scandir(inside) as entries:
                for entry in entries:
                    yield name, entry

    @contextlib.contextmanager
    def _subfolder(self, name: str) -> Iterator[int]:
        number = os.open(name, _FOLDER, dir_fd=self._root)
        try:
            yield number
        finally:
            os.close(number)


def _open_folder(path: Path, create: bool) -> int:
    what = f"{path} cannot hold cached pages."
    try:
        if create:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        number = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileExistsError, NotADirectoryError):
        raise CacheFolderError(what, "It is not a folder.", "Name another one with --cache-dir.") from None
    except OSError as error:
        raise CacheFolderError(what, f"{error.strerror}.", "Name another one with --cache-dir.") from error
    found = os.fstat(number)
    if found.st_uid not in (os.geteuid(), 0):
        why, hint = f"It belongs to user {found.st_uid}.", "Name a folder of your own with --cache-dir."
    elif found.st_mode & 0o022:
        why, hint = "Other users may write to it, and so put pages of theirs there.", f"Run: chmod go-w {path}"
    else:
        return number
    os.close(number)
    raise CacheFolderError(what, why, hint)
