"""Files and folders that appear whole or not at all, also when two processes make the same one at once."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backend.errors import DownloadError


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A temporary folder on the same file system as what will be made in `parent`; gone afterwards."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".making-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish_folder(made: Path, target: Path) -> None:
    """Move the folder `made` to `target`; where another process was first, its result stays."""
    try:
        os.rename(made, target)
    except OSError as error:
        if error.errno not in {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR} or not target.is_dir():
            raise


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raise DownloadError where the disk that holds `folder` has less than `needed` free bytes."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise disk_full(what, existing, needed)


def disk_full(what: str, folder: Path, needed: int) -> DownloadError:
    """The error for a disk without room; `needed` is in bytes."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    return DownloadError(
        f"There is no room for {what}.",
        f"It needs {needed / 1e9:.2f} GB more; the disk with {existing} has {free / 1e9:.2f} GB free.",
        "Free some space (`shardwise rm NAME`), or point HF_HOME or SHARDWISE_CACHE_HOME elsewhere.",
    )
