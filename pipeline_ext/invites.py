"""Invites: who may join, while their token lasts; and InviteLine: the text that a person carries to the other machine.

A token is kept as a hash only and compared in constant time. The clock is given: monotonic seconds.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
from msgspec import Struct

from backend.errors import ShardwiseError

TOKEN_BYTES = 16
LIFETIME = 3600.0
MOST_USES = 1000
MOST_INVITES = 1000
_PREFIX = "sw1-"
_MOST_LINE = 400


class InviteError(ShardwiseError):
    """An invite cannot be read, or was not accepted."""

    code = "invite"
    exit_status = 2


class InviteLine(Struct, frozen=True, array_like=True):
    """What an invite says: where the hub is, by which authority it is known, and what to show there.

    Attributes:
        fingerprint: 32 bytes, of the authority's certificate.
        version: of shardwise at the head, so that another one is refused before anything is sent.
    """

    address: str
    port: int
    fingerprint: bytes
    token: bytes
    version: str

    def text(self) -> str:
        """One word, to be pasted."""
        return _PREFIX + base64.urlsafe_b64encode(msgspec.msgpack.encode(self)).decode().rstrip("=")


def read_line(text: str) -> InviteLine:
    """Raises InviteError for anything but an invite's text."""
    word = "".join(text.split())
    try:
        if not word.startswith(_PREFIX) or len(word) > _MOST_LINE:
            raise ValueError("it does not begin with " + _PREFIX if len(word) <= _MOST_LINE else "it is too long")
        body = base64.b64decode(word.removeprefix(_PREFIX) + "=" * (-len(word) % 4), b"-_", validate=True)
        line = msgspec.msgpack.decode(body, type=InviteLine)
        if len(line.fingerprint) != 32 or len(line.token) != TOKEN_BYTES or not 0 < line.port < 65536:
            raise ValueError("a part of it has a wrong length")
    except (ValueError, binascii.Error, msgspec.MsgspecError) as error:
        raise InviteError(
            "This is no invite",
            f"{str(error)[:200]}.",
            "Copy the whole line that `shardwise peers invite` printed on the other machine.",
        ) from None
    return line


@dataclass(slots=True)
class _Invite:
    name: str
    digest: bytes
    until: float
    uses: int
    used_by: set[str] = field(default_factory=set)


class OpenInvite(Struct, frozen=True):
    """An invite that may still be used: its name (no secret), seconds that are left, uses that are left."""

    name: str
    seconds: float
    uses: int


class Invites:
    """The open invites of one hub; they end with it."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._open: dict[str, _Invite] = {}

    def make(self, seconds: float = LIFETIME, uses: int = 1) -> tuple[str, bytes]:
        """A new invite: its name, and its token, which is not kept."""
        self._forget()
        if len(self._open) >= MOST_INVITES:
            raise InviteError("Too many invites are open", "", "Take them back: shardwise peers revoke")
        name, token = secrets.token_hex(3), secrets.token_bytes(TOKEN_BYTES)
        self._open[name] = _Invite(name, _digest(token), self._now() + seconds, uses)
        return name, token

    def accepts(self, token: bytes, key: str) -> bool:
        """Whether who shows this token may join; `key` is the id of its key, which may come again if an answer to it
        got lost. Uses nothing up."""
        return self._find(token, key) is not None

    def use(self, token: bytes, key: str) -> bool:
        """The same, and one use less."""
        found = self._find(token, key)
        if found is not None:
            found.used_by.add(key)
        return found is not None

    def revoke(self, name: str | None = None) -> int:
        """Takes one back, or all: how many of them could still have been used."""
        before = len(self.open())
        for each in [each for each in self._open if name is None or each == name]:
            del self._open[each]
        return before - len(self.open())

    def open(self) -> tuple[OpenInvite, ...]:
        self._forget()
        return tuple(
            OpenInvite(each.name, each.until - self._now(), each.uses - len(each.used_by))
            for each in self._open.values()
            if len(each.used_by) < each.uses
        )

    def _find(self, token: bytes, key: str) -> _Invite | None:
        """All are compared, so that how long it takes tells nothing."""
        self._forget()
        digest, found = _digest(token), None
        for each in self._open.values():
            if hmac.compare_digest(each.digest, digest):
                found = each
        if found is None or (len(found.used_by) >= found.uses and key not in found.used_by):
            return None
        return found

    def _forget(self) -> None:
        for name in [each.name for each in self._open.values() if each.until <= self._now()]:
            del self._open[name]


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


class Attempts:
    """How often strangers may try: each failure costs its address a place, and places come back with time."""

    def __init__(self, now: Callable[[], float], most: int = 10, seconds: float = 60.0) -> None:
        self._now, self._most, self._seconds = now, most, seconds
        self._failures: dict[str, list[float]] = {}

    def may(self, address: str) -> bool:
        self._forget()
        return len(self._failures.get(address, ())) < self._most

    def failed(self, address: str) -> None:
        self._failures.setdefault(address, []).append(self._now())

    def _forget(self) -> None:
        since = self._now() - self._seconds
        for address, times in list(self._failures.items()):
            times[:] = [time for time in times if time > since]
            if not times:
                del self._failures[address]
