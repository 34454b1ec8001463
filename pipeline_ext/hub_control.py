"""The hub's Unix socket: what commands, the server and engines ask of the hub, and the client they ask with.

A connection carries one question and its answer, msgpack in frames; `Subscribe` is answered by news until it closes.
"""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import Annotated

import msgspec
import platformdirs
from msgspec import Meta, Struct

from backend.errors import ShardwiseError
from backend.frames import framed, receive_frame
from pipeline_ext.invites import MOST_USES, OpenInvite
from pipeline_ext.peer import Peer

CONTROL_FRAME = 4 * 1024 * 1024
_Id = Annotated[str, Meta(max_length=64)]


class NoHubError(ShardwiseError):
    """No hub runs, or it does not answer."""

    code = "no_hub"


class HubRefusalError(ShardwiseError):
    """The hub says no; what it said is the message."""

    code = "hub_refusal"


class Control(Struct, frozen=True, array_like=True, tag=True):
    """Sent as an array with its type's name in front."""


class MakeInvite(Control, frozen=True):
    """Answered by Invited."""

    seconds: Annotated[float, Meta(ge=1, le=30 * 86400)]
    uses: Annotated[int, Meta(ge=1, le=MOST_USES)]


class RevokeInvites(Control, frozen=True):
    """One by its name, or all. Answered by Counted."""

    name: _Id | None


class AskPeers(Control, frozen=True):
    """Answered by News."""


class RemovePeer(Control, frozen=True):
    """By id or name: it is drained first, unless `at_once`. Answered by Done; the rest shows in the list."""

    peer: _Id
    at_once: bool


class Spawn(Control, frozen=True):
    """`order` is a `cluster.SpawnOrder`, encoded. Answered by Done once the processes were started."""

    engine: _Id
    peer: _Id
    order: Annotated[bytes, Meta(max_length=64 * 1024)]


class Kill(Control, frozen=True):
    """Answered by Done when it was passed on."""

    engine: _Id
    peer: _Id
    workers: Annotated[tuple[_Id, ...], Meta(max_length=256)]


class ReleasePeer(Control, frozen=True):
    """An engine does not need this peer any more. Answered by Done."""

    engine: _Id
    peer: _Id


class Subscribe(Control, frozen=True):
    """An engine wants News of the peers, now and whenever they change; it counts as running until it hangs up.

    `peers`: on which it has processes already, for a hub that was started after them.
    """

    engine: _Id
    peers: Annotated[tuple[_Id, ...], Meta(max_length=1000)] = ()


class StopHub(Control, frozen=True):
    """Ends the hub and its Ray head. Answered by Done, before."""


class Invited(Control, frozen=True):
    """`name` is no secret; `line` is. `wildcard_ports`: of Ray, on every address of this machine."""

    name: str
    line: str
    wildcard_ports: tuple[int, ...]


class Counted(Control, frozen=True):
    count: int


class Done(Control, frozen=True):
    """It was done."""


class Refused(Control, frozen=True):
    """It was not: as a ShardwiseError says it."""

    what: str
    why: str = ""
    hint: str = ""


class PeerNote(Struct, frozen=True, array_like=True):
    """What is the matter with a peer, and Ray's ports there."""

    peer: str
    text: str
    wildcard_ports: tuple[int, ...]


class News(Control, frozen=True):
    """The peers, the head first, and what else there is to say.

    Attributes:
        address: where the door is, HOST:PORT.
        ray: empty while Ray stands; else what is the matter.
    """

    address: str
    peers: tuple[Peer, ...]
    notes: tuple[PeerNote, ...]
    invites: tuple[OpenInvite, ...]
    ray: str
    wildcard_ports: tuple[int, ...]
    pid: int


Question = MakeInvite | RevokeInvites | AskPeers | RemovePeer | Spawn | Kill | ReleasePeer | Subscribe | StopHub
Answer = Invited | Counted | Done | Refused | News

encoder = msgspec.msgpack.Encoder()
question_decoder: msgspec.msgpack.Decoder[Question] = msgspec.msgpack.Decoder(Question)
answer_decoder: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def socket_path() -> Path:
    """Where this user's hub listens."""
    import warnings

    with warnings.catch_warnings():
        # Over SSH there may be no XDG_RUNTIME_DIR; the fallback is what everybody here uses then.
        warnings.simplefilter("ignore")
        return platformdirs.user_runtime_path("shardwise") / "hub.sock"


class HubClient:
    """Asks the hub behind `path`. Each method but `subscribe` blocks until the answer, or `seconds`."""

    def __init__(self, path: Path | None = None, seconds: float = 10.0) -> None:
        self._path, self._seconds = path or socket_path(), seconds

    def ask(self, question: Question) -> Answer:
        """Raises NoHubError, and HubRefusalError where it was refused."""
        with self._connect() as line:
            try:
                line.sendall(framed(encoder.encode(question)))
                return _answer(line)
            except (OSError, ValueError) as error:
                raise _away(str(error)) from None

    def news(self) -> News:
        """Raises NoHubError."""
        answer = self.ask(AskPeers())
        if not isinstance(answer, News):
            raise _away(f"it answered with {type(answer).__name__}")
        return answer

    def subscribe(self, engine: str, peers: tuple[str, ...] = ()) -> socket.socket:
        """A line on which News come, to be read with `next_news`. Raises NoHubError."""
        line = self._connect()
        try:
            line.sendall(framed(encoder.encode(Subscribe(engine, peers))))
            line.settimeout(None)
        except OSError as error:
            line.close()
            raise _away(str(error)) from None
        return line

    def _connect(self) -> socket.socket:
        line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        line.settimeout(self._seconds)
        try:
            found = self._path.lstat()
            if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
                raise OSError("it is not a socket of this user")
            line.connect(str(self._path))
        except OSError as error:
            line.close()
            raise _away(error.strerror or str(error)) from None
        return line


def next_news(line: socket.socket) -> News | None:
    """Blocks; None where the hub has hung up."""
    try:
        body = receive_frame(line)
        answer = None if body is None else answer_decoder.decode(body)
    except (OSError, ValueError, msgspec.MsgspecError):
        return None
    return answer if isinstance(answer, News) else None


def _answer(line: socket.socket) -> Answer:
    body = receive_frame(line)
    if body is None:
        raise ValueError("it hung up")
    answer = answer_decoder.decode(body)
    if isinstance(answer, Refused):
        raise HubRefusalError(answer.what, answer.why, answer.hint)
    return answer


def _away(why: str) -> NoHubError:
    return NoHubError(
        "The hub of the peers does not answer", f"{why}.", "`shardwise peers invite` starts it where none runs."
    )
