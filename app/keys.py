"""KeyStore: the API keys of this machine's servers, by name: made, listed, revoked and checked.

Only hashes are kept. A key has 256 random bits, so that a plain SHA-256 of it cannot be searched; a slow hash is for
passwords that people think up, and would cost every request.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import platformdirs

from app.rest.settings import LOOPBACK_HOSTS
from backend.errors import ShardwiseError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_MAX_KEY = 256
_PREFIX = "sw-"


class ApiKeyError(ShardwiseError):
    """A key cannot be made, found or read."""

    code = "api_key"


class KeyNeededError(ShardwiseError):
    """Others could reach the server, and no key keeps them out."""

    code = "key_needed"
    exit_status = 2


class KeyRecord(msgspec.Struct, frozen=True):
    """One key: its name, its id, the SHA-256 of its text in hex, and when it was made (seconds since 1970)."""

    name: str
    id: str
    hash: str
    created: int


class _KeyFile(msgspec.Struct, frozen=True):
    version: int
    keys: tuple[KeyRecord, ...]


class KeyStore:
    """The keys in one file, which commands may change while a server reads it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._records: tuple[KeyRecord, ...] | None = ()

    def create(self, name: str) -> str:
        """A new key's text, which is shown this once.

        Raises:
            ApiKeyError: the name is taken or not a name.
        """
        if _NAME.match(name) is None:
            raise ApiKeyError(
                f"{name!r} cannot name a key", hint="Use up to 64 letters, digits, dots, dashes and underscores."
            )
        records = self._load()
        if any(each.name == name for each in records):
            raise ApiKeyError(f"There is already a key named {name!r}", hint="Revoke it first, or choose another name.")
        key = _PREFIX + secrets.token_urlsafe(32)
        record = KeyRecord(name, secrets.token_hex(8), _hash(key), int(time.time()))
        self._save((*records, record))
        return key

    def list(self) -> tuple[KeyRecord, ...]:
        """All keys, oldest first."""
        return self._load()

    def revoke(self, name: str) -> KeyRecord:
        """Removes a key, and says which; running servers refuse it from the next request on.

        Raises:
            ApiKeyError: there is none of that name.
        """
        records = self._load()
        revoked = next((each for each in records if each.name == name), None)
        if revoked is None:
            raise ApiKeyError(f"There is no key named {name!r}", hint="`shardwise keys list` shows the names.")
        self._save(tuple(each for each in records if each is not revoked))
        return revoked

    def in_use(self) -> bool:
        """Whether keys are asked for: one exists, or the file cannot be read, which locks rather than opens."""
        records = self._current()
        return records is None or len(records) > 0

    def allows(self, key: str) -> bool:
        """Whether this is the text of a key."""
        return self.id_of(key) is not None

    def id_of(self, key: str) -> str | None:
        """The id of the key that has this text, None where there is none. Takes as long for every key of the store."""
        if len(key) > _MAX_KEY:
            return None
        wanted, found = _hash(key), None
        for record in self._current() or ():
            found = record.id if hmac.compare_digest(record.hash, wanted) else found
        return found

    def _current(self) -> tuple[KeyRecord, ...] | None:
        """The records as the file has them now, read again only when it changed; None where it cannot be read."""
        try:
            state = self._path.stat()
        except FileNotFoundError:
            self._stamp, self._records = None, ()
            return ()
        except OSError:
            return None
        stamp = (state.st_mtime_ns, state.st_ino, state.st_size)
        if stamp != self._stamp:
            try:
                self._records = self._load()
            except ApiKeyError:
                self._records = None
            self._stamp = stamp
        return self._records

    def _load(self) -> tuple[KeyRecord, ...]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_KeyFile).keys
        except FileNotFoundError:
            return ()
        except (OSError, msgspec.MsgspecError) as error:
            raise ApiKeyError(
                f"The keys in {self._path} cannot be read", str(error)[:300], "Repair or remove the file."
            ) from error

    def _save(self, records: Sequence[KeyRecord]) -> None:
        """Replaces the file in one step, readable by its owner only from the first byte on."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        data = msgspec.json.format(msgspec.json.encode(_KeyFile(1, tuple(records))))
        descriptor, name = tempfile.mkstemp(dir=self._path.parent, prefix=".keys-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            Path(name).replace(self._path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def default_key_store() -> KeyStore:
    """The keys of this user."""
    return KeyStore(Path(platformdirs.user_data_dir("shardwise")) / "keys.json")


def check_binding(host: str, keys: KeyStore) -> bool:
    """Whether `host` is loopback, where no key is needed.

    Raises:
        KeyNeededError: other machines could reach the server, and there is no key.
    """
    loopback = host.strip("[]") in {name.strip("[]") for name in LOOPBACK_HOSTS} or host.startswith("127.")
    if not loopback and not keys.in_use():
        raise KeyNeededError(
            f"Binding to {host} would let other machines in, and there is no API key",
            "Beyond this machine, every request needs a key.",
            "Make one with `shardwise keys create NAME`, or bind to 127.0.0.1.",
        )
    return loopback


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
