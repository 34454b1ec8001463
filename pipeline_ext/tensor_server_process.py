"""TensorServerProcess: the engine's side of its tensor server: started when first wanted, and again where it died."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from typing import IO

import msgspec

from backend.errors import ShardwiseError
from backend.frames import MAX_FRAME_BYTES, framed
from backend.library.files import ModelFiles
from pipeline_ext.identity import Identity
from pipeline_ext.tensor_offer import encode_offer
from pipeline_ext.tensor_server import CannotServe, ServerOrder, Serving

COMMAND = (sys.executable, "-P", "-m", "pipeline_ext.tensor_server")
START_SECONDS = 60.0


class TensorServerError(ShardwiseError):
    """No tensors can be served to peers; says why."""

    code = "tensor_server"


class TensorServerProcess:
    """Safe to use from several threads.

    Args:
        host: the cluster's address, the only one that is listened on.
        secret: what peers have to show; of this engine process.
    """

    def __init__(self, files: ModelFiles, host: str, identity: Identity, secret: bytes) -> None:
        self._order = ServerOrder(files, host, str(identity.folder), secret)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._offer = b""

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def offer(self) -> bytes:
        """The offer, encoded as LoadStage has it; starts the process where none runs, which takes about a second.

        Raises:
            TensorServerError: it cannot be started.
        """
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._reap()
                self._offer = self._start()
            return self._offer

    def close(self) -> None:
        """Ends the process."""
        with self._lock:
            self._reap()

    def _start(self) -> bytes:
        try:
            process = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        except OSError as error:
            raise TensorServerError("The server of tensors cannot be started", f"{error}.") from None
        self._process = process
        told = _told(process, framed(msgspec.msgpack.encode(self._order)))
        if isinstance(told, Serving):
            return encode_offer(told.offer)
        self._reap()
        if isinstance(told, CannotServe):
            raise TensorServerError(told.what, told.why)
        raise TensorServerError("The server of tensors did not start", "It ended, or said nothing in time.")

    def _reap(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            process.wait(2.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _told(process: subprocess.Popen[bytes], order: bytes) -> Serving | CannotServe | None:
    """What the process answers to its order; None where it says nothing, or nothing in time."""
    timer = threading.Timer(START_SECONDS, process.kill)
    timer.start()
    try:
        if process.stdin is None or process.stdout is None:
            return None
        process.stdin.write(order)
        process.stdin.flush()
        return msgspec.msgpack.decode(_frame(process.stdout), type=Serving | CannotServe)  # pyright: ignore[reportArgumentType]
    except (OSError, ValueError, msgspec.MsgspecError):
        return None
    finally:
        timer.cancel()


def _frame(pipe: IO[bytes]) -> bytes:
    length = int.from_bytes(pipe.read(4), "big")
    if length > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {length} bytes")
    return pipe.read(length)
