"""TensorServer: hands out byte ranges of one model's files, by number, to machines of the cluster that show the secret.

`python -m pipeline_ext.tensor_server` is a process of its own, so that hashing and encrypting take no time from the
engine, which starts it (`tensor_server_process`), and with whose end it ends.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
import ssl
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from backend.errors import ShardwiseError
from backend.library.files import ModelFiles
from pipeline_ext.identity import Identity, server_context
from pipeline_ext.tensor_messages import (
    MOST_RANGE_BYTES,
    SILENCE_SECONDS,
    Ask,
    Denied,
    Open,
    Opened,
    Piece,
    receive,
    send,
    to_server_decoder,
)
from pipeline_ext.tensor_offer import TensorOffer, at_address, make_offer, text_paths

MOST_LINES = 64
GREETING_SECONDS = 10.0


class ServerOrder(Struct, frozen=True):
    """To the process, on its standard input: what to serve, where, as whom. The end of that input ends it."""

    files: ModelFiles
    host: str
    identity: str
    secret: bytes

    def __repr__(self) -> str:
        return f"ServerOrder({self.files.name!r}, {self.host!r})"


class Serving(Struct, frozen=True, tag=True):
    """From the process, on its standard output: it listens; this is the offer, with its address."""

    offer: TensorOffer


class CannotServe(Struct, frozen=True, tag=True):
    """From the process, as its last word."""

    what: str
    why: str


class _File:
    """One file, open as long as the server: what is served cannot be exchanged by renaming."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self.descriptor).st_size

    def read(self, start: int, length: int) -> bytes:
        return os.pread(self.descriptor, length, start)


class TensorServer:
    """Listens from the start on; `run` serves until `close`.

    Args:
        context: for TLS; tests of what lies behind it may do without.
        secret: of the engine; whoever does not show it gets nothing.
    """

    def __init__(self, files: ModelFiles, host: str, context: ssl.SSLContext | None, secret: bytes) -> None:
        if not secret:
            raise ValueError("a server without a secret would serve anyone")
        self._context, self._secret = context, secret
        self._listener = socket.create_server((host, 0), family=_family(host), backlog=MOST_LINES)
        self._files = [_File(path) for path in (*map(Path, files.weights), *text_paths(files))]
        self.offer = at_address(make_offer(files), _joined(host, self._listener.getsockname()[1]))
        self._places = threading.BoundedSemaphore(MOST_LINES)

    def run(self) -> None:
        """Serves each line in a thread; returns when `close` was called."""
        while True:
            try:
                line, _ = self._listener.accept()
            except OSError:
                return
            if not self._places.acquire(blocking=False):
                line.close()
                continue
            threading.Thread(target=self._serve, args=(line,), name="tensor line", daemon=True).start()

    def close(self) -> None:
        """No new lines; those that are open end with the process or their clients."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self, raw: socket.socket) -> None:
        try:
            raw.settimeout(GREETING_SECONDS)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._secured(raw) as line:
                self._greet(line)
                line.settimeout(SILENCE_SECONDS)
                while True:
                    self._answer(line, receive(line))
        except (OSError, ValueError, msgspec.MsgspecError):
            pass  # it has gone, was never one of ours, or says what nobody of ours would
        finally:
            raw.close()
            self._places.release()

    def _secured(self, raw: socket.socket) -> socket.socket:
        return raw if self._context is None else self._context.wrap_socket(raw, server_side=True)

    def _greet(self, line: socket.socket) -> None:
        hello = to_server_decoder.decode(receive(line))
        if not isinstance(hello, Open) or not hmac.compare_digest(hello.secret, self._secret):
            send(line, Denied("not for this engine"))
            raise ValueError("a stranger")
        send(line, Opened())

    def _answer(self, line: socket.socket, frame: bytes) -> None:
        ask = to_server_decoder.decode(frame)
        if not isinstance(ask, Ask) or not self._may(ask):
            send(line, Denied("no such range"))
            raise ValueError("asked for what is not offered")
        data = self._files[ask.file].read(ask.start, ask.length)
        if len(data) != ask.length:
            send(line, Denied("the file has become shorter"))
            raise ValueError("a file has become shorter")
        send(line, Piece(len(data), hashlib.sha256(data).digest()))
        line.sendall(data)

    def _may(self, ask: Ask) -> bool:
        if not 0 <= ask.file < len(self._files) or not 0 < ask.length <= MOST_RANGE_BYTES or ask.start < 0:
            return False
        return ask.start + ask.length <= self._files[ask.file].size


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _end_with_input() -> None:
    """The engine holds the other end: where that closes, the engine has gone or wants no server any more."""
    with suppress(OSError):
        while os.read(0, 4096):
            pass
    os._exit(0)


def main() -> None:
    """The process: reads its order, says where it listens, serves."""
    tell = _teller()
    try:
        order = msgspec.msgpack.decode(_order_bytes(), type=ServerOrder)
        context = server_context(Identity(Path(order.identity), ""))
        server = TensorServer(order.files, order.host, context, order.secret)
    except ShardwiseError as error:
        tell(CannotServe(error.what, error.why))
        return
    except OSError as error:
        tell(CannotServe("The server of tensors cannot start", f"{error}."))
        return
    tell(Serving(server.offer))
    threading.Thread(target=_end_with_input, name="owner's end", daemon=True).start()
    server.run()


def _order_bytes() -> bytes:
    head = _read_exactly(4)
    return _read_exactly(int.from_bytes(head, "big"))


def _read_exactly(count: int) -> bytes:
    """From standard input, nothing beyond."""
    data = b""
    while len(data) < count:
        part = os.read(0, count - len(data))
        if not part:
            raise OSError("its owner has gone")
        data += part
    return data


def _teller() -> Callable[[Serving | CannotServe], None]:
    """Standard output is the owner's line; what anything else prints goes to standard error."""
    line = os.dup(1)
    os.dup2(2, 1)

    def tell(message: Serving | CannotServe) -> None:
        body = msgspec.msgpack.encode(message)
        os.write(line, len(body).to_bytes(4, "big") + body)
        os.close(line)

    return tell


if __name__ == "__main__":
    sys.exit(main())
