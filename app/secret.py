"""The installation's secret: 32 random bytes that sign pages on disk and separate API keys. What it derives is others'.

It is made once, on the first start. Whoever removes it only loses the pages on disk, which nobody can verify then.
"""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

import platformdirs

from backend.errors import ShardwiseError

SECRET_BYTES = 32


class SecretError(ShardwiseError):
    """The secret cannot be kept or cannot be trusted. Its bytes are in no message."""

    code = "secret"
    exit_status = 2


def installation_secret(path: Path | None = None) -> bytes:
    """This user's secret, made where there is none; processes that start at once get the same.

    Raises:
        SecretError: it is not a file that only its owner can read, or not of its length, or cannot be written.
    """
    path = path or Path(platformdirs.user_data_dir("shardwise")) / "secret"
    try:
        if not os.path.lexists(path):
            _make(path)
        return _read(path)
    except OSError as error:
        raise SecretError(
            "The installation's secret cannot be kept",
            f"{path}: {error.strerror or error}.",
            "Make its folder writable; it signs cached pages and separates API keys.",
        ) from None


def _make(path: Path) -> None:
    """Appears whole or not at all, and never replaces one that another process made meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".secret-")  # readable by its owner only
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(SECRET_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def _read(path: Path) -> bytes:
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
        found = os.fstat(file.fileno())
        _check(path, found)
        content = file.read(SECRET_BYTES + 1)
    if len(content) != SECRET_BYTES:
        raise SecretError(
            "The installation's secret is damaged",
            f"{path} has not {SECRET_BYTES} bytes.",
            "Remove it: a new one is made, and pages that the old one signed are not used any more.",
        )
    return content


def _check(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        raise SecretError(
            "The installation's secret cannot be trusted",
            f"{path} is not a file of this user.",
            "Remove it: a new one is made.",
        )
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise SecretError(
            "The installation's secret is open to others",
            f"{path} can be read by other users ({stat.filemode(found.st_mode)}).",
            "Remove it, and a new one is made; or `chmod 600` it, where nobody else can have read it.",
        )
