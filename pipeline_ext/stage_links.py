"""StageLinks: the links of one stage's rank 0: listens for the stage before, dials the next one, one pair an epoch.

    next stage   dial ── LinkHello(epoch, secret) ──►  listen     whoever comes too early waits for its epoch
                 dial ◄─ Welcome(epoch) ────────────   listen     now the link stands on both sides

What happens is put into one queue, in order for each link; what frames say is `link_protocol`'s. A neighbour that is
frozen holds nobody up: frames are read by a thread, and what it does not take is kept until the link is closed.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from backend.frames import MAX_FRAME_BYTES
from pipeline_ext.dial import dial, say
from pipeline_ext.hello import LinkHello, StrangerError, Welcome, encoder, read_link_hello, read_welcome
from pipeline_ext.listening import Listening
from pipeline_ext.stream import Part, Stream

# How long a neighbour may take to be told of an epoch that we were told of.
JOIN_SECONDS = 60.0
REDIAL_SECONDS = 0.2
# Of a socket on this machine, which would hold less than one chunk of a prompt otherwise.
_BUFFER_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class LinkStands:
    """A link of this epoch stands on both sides; `forward` says which of the two."""

    epoch: int
    forward: bool


@dataclass(frozen=True, slots=True)
class LinkFrame:
    """The stage before has sent this."""

    epoch: int
    body: bytes | bytearray


@dataclass(frozen=True, slots=True)
class LinkBroken:
    """A link of this epoch broke, or could not be made; nothing more comes by it."""

    epoch: int
    forward: bool
    text: str


LinkEvent = LinkStands | LinkFrame | LinkBroken


class StageLinks:
    """`put` gets what happens, from threads of ours. All methods belong to one thread."""

    def __init__(
        self,
        stage: int,
        secret: bytes,
        context: ssl.SSLContext | None,
        folder: Path | None,
        put: Callable[[LinkEvent], None],
    ) -> None:
        """context: for dialling other machines; None where all stages are on this one.

        folder: where Unix sockets of this engine's workers on this machine lie, if it is the engine's own.
        """
        self._stage, self._secret, self._context, self._put = stage, secret, context, put
        self._folder = folder
        self._listening = Listening(self._visit, "links")
        self._guard = threading.Lock()
        self._epoch = -1
        self._early: dict[int, Stream] = {}
        self._backward: Stream | None = None
        self._forward: Stream | None = None
        self._dialling: Stream | None = None

    def listen(self, listener: socket.socket, context: ssl.SSLContext | None) -> str:
        """Lets the stage before come in there; the place."""
        return self._listening.listen(listener, context)

    @property
    def strangers(self) -> int:
        """How many were turned away."""
        return self._listening.strangers

    def join(self, epoch: int, forward: str) -> None:
        """From now on only this epoch's links count, those before are closed. `forward`: places to dial, if any."""
        with self._guard:
            self._close_links()
            self._epoch = epoch
            for number in [number for number in self._early if number < epoch]:
                self._early.pop(number).close()
            early = self._early.pop(epoch, None)
            if early is not None:
                self._take_in(early)
        if forward:
            place = chosen_place(forward, self._folder)
            threading.Thread(target=self._dial, args=(epoch, place), name="dial", daemon=True).start()

    def send(self, epoch: int, *parts: Part) -> None:
        """One frame to the next stage; never waits. Silent about a link that is gone, of which `LinkBroken` tells."""
        stream = self._forward
        if stream is not None and epoch == self._epoch:
            stream.send(*parts)

    def cut(self, epoch: int) -> None:
        """Nothing that comes in by this epoch's link can be believed any more."""
        with self._guard:
            if epoch == self._epoch and self._backward is not None:
                self._backward.close()

    def close(self) -> None:
        """No call follows."""
        self._listening.close()
        with self._guard:
            self._close_links()
            for stream in self._early.values():
                stream.close()

    def _close_links(self) -> None:
        for stream in (self._backward, self._forward, self._dialling):
            if stream is not None:
                stream.close()
        self._backward = self._forward = self._dialling = None

    def _visit(self, body: bytes | bytearray, stream: Stream) -> None:
        """From a visitor's thread."""
        hello = read_link_hello(body, self._secret)
        with self._guard:
            if hello.stage != self._stage - 1 or hello.epoch < self._epoch:
                raise StrangerError(f"stage {hello.stage} of epoch {hello.epoch} does not belong before this one")
            stream.limit = MAX_FRAME_BYTES
            if hello.epoch > self._epoch:
                earlier = self._early.pop(hello.epoch, None)
                self._early[hello.epoch] = stream
            else:
                # One that dials again has lost its side of the link; frames may have been lost with it.
                earlier = None
                if self._backward is not None:
                    raise StrangerError(f"a second link of epoch {hello.epoch}")
                self._take_in(stream)
        if earlier is not None:
            earlier.close()

    def _take_in(self, stream: Stream) -> None:
        """Under the guard: the stage before is there."""
        _widen(stream.peer)
        self._backward = stream
        epoch = self._epoch
        stream.send(encoder.encode(Welcome(epoch)))
        self._put(LinkStands(epoch, forward=False))
        threading.Thread(target=self._read, args=(epoch, stream), name="link in", daemon=True).start()

    def _read(self, epoch: int, stream: Stream) -> None:
        text = "the stage before has closed the link"
        try:
            while (body := stream.next()) is not None:
                self._put(LinkFrame(epoch, body))
        except (OSError, ValueError) as error:
            text = str(error)
        self._broken(epoch, stream, False, text)

    def _dial(self, epoch: int, place: str) -> None:
        """Until it is welcome, or the epoch is over."""
        deadline = time.monotonic() + JOIN_SECONDS
        text = "the next stage did not answer in time"
        while time.monotonic() < deadline and epoch == self._epoch:
            try:
                stream = self._introduced(epoch, place, deadline - time.monotonic())
            except (OSError, ValueError) as error:
                text = str(error)
                time.sleep(REDIAL_SECONDS)
                continue
            with self._guard:
                if epoch != self._epoch:
                    stream.close()
                    return
                self._forward, self._dialling = stream, None
                self._put(LinkStands(epoch, forward=True))
            return self._watch(epoch, stream)
        if epoch == self._epoch:
            self._put(LinkBroken(epoch, True, f"{place}: {text}"))

    def _introduced(self, epoch: int, place: str, seconds: float) -> Stream:
        stream = dial(place, self._context)
        try:
            _widen(stream.peer)
            with self._guard:
                if epoch != self._epoch:
                    raise ConnectionError("another epoch has begun")
                self._dialling = stream
            say(stream, LinkHello(epoch, self._stage, self._secret))
            body = stream.next(seconds)
            if body is None or read_welcome(body).epoch != epoch:
                raise ConnectionError("the next stage turned us away")
        except BaseException:
            stream.close()
            raise
        return stream

    def _watch(self, epoch: int, stream: Stream) -> None:
        """Nothing comes that way, but the end does."""
        text = "the next stage has closed the link"
        try:
            if stream.next() is not None:
                text = "the next stage spoke, which it must not"
        except (OSError, ValueError) as error:
            text = str(error)
        self._broken(epoch, stream, True, text)

    def _broken(self, epoch: int, stream: Stream, forward: bool, text: str) -> None:
        """From the thread that reads it. What was closed for a new epoch is not told of."""
        stream.close()
        if epoch == self._epoch:
            self._put(LinkBroken(epoch, forward, text))


def chosen_place(places: str, folder: Path | None) -> str:
    """Of the places where one stage listens, with spaces between: the Unix socket where it is ours, else the other."""
    found = places.split()
    near = [place for place in found if place.startswith("/") and Path(place).parent == folder]
    far = [place for place in found if not place.startswith("/")]
    return (near or far or found)[0]


def _widen(peer: socket.socket) -> None:
    if peer.family == socket.AF_UNIX:
        for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            peer.setsockopt(socket.SOL_SOCKET, buffer, _BUFFER_BYTES)
