"""Link protocol: what goes over a link from one stage to the next, as typed frames. Sockets are others'.

    magic  version  kind  dtype  epoch  number  rows  columns  length | data, `length` bytes
    4      1        1     2      8      8       4     4        4

Everything in a header is checked before it is used, and memory is taken for what has arrived, never for what a header
claims.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from types import MappingProxyType

from backend.hidden_states import DTYPE_BYTES, HiddenStates

MAGIC = b"swHS"
VERSION = 1
HEADER = struct.Struct("<4sBBHQQIII")

_STATES, _SKIPPED, _KEEPALIVE = 1, 2, 3
_DTYPE_CODES = MappingProxyType({"bfloat16": 1, "float16": 2, "float32": 3})
_DTYPES = MappingProxyType({code: name for name, code in _DTYPE_CODES.items()})


class LinkError(ValueError):
    """Bytes that no stage of ours sends: nothing that follows on this link can be believed."""


@dataclass(frozen=True, slots=True)
class States:
    """The hidden states of one batch's tokens."""

    epoch: int
    number: int
    hidden: HiddenStates


@dataclass(frozen=True, slots=True)
class Skipped:
    """The batch failed on a stage before: there is nothing to compute with."""

    epoch: int
    number: int


@dataclass(frozen=True, slots=True)
class Keepalive:
    """Nothing, but the link lives."""

    epoch: int


Frame = States | Skipped | Keepalive


@dataclass(frozen=True, slots=True)
class FrameLimits:
    """What a link may carry: at most `rows` tokens a frame, of `columns` elements each."""

    rows: int
    columns: int


def frame_parts(frame: Frame) -> tuple[bytes, memoryview | bytes]:
    """Header and data of a frame, to be sent one behind the other. The data may be a view, as in HiddenStates."""
    match frame:
        case States(epoch=epoch, number=number, hidden=hidden):
            code = _DTYPE_CODES[hidden.dtype]
            fields = (_STATES, code, epoch, number, hidden.rows, hidden.columns, hidden.nbytes)
            return HEADER.pack(MAGIC, VERSION, *fields), hidden.data
        case Skipped(epoch=epoch, number=number):
            return HEADER.pack(MAGIC, VERSION, _SKIPPED, 0, epoch, number, 0, 0, 0), b""
        case Keepalive(epoch=epoch):
            return HEADER.pack(MAGIC, VERSION, _KEEPALIVE, 0, epoch, 0, 0, 0, 0), b""


@dataclass(frozen=True, slots=True)
class _Header:
    kind: int
    dtype: str
    epoch: int
    number: int
    rows: int
    columns: int
    length: int


def _read_header(data: bytes | bytearray | memoryview, limits: FrameLimits) -> _Header:
    """Raises LinkError unless all of it can be true."""
    magic, version, kind, code, epoch, number, rows, columns, length = HEADER.unpack_from(data)
    if magic != MAGIC or version != VERSION:
        raise LinkError(f"no frame of version {VERSION}: {magic!r}, version {version}")
    if kind in (_SKIPPED, _KEEPALIVE):
        if code or rows or columns or length or (kind == _KEEPALIVE and number):
            raise LinkError(f"a frame of kind {kind} with data")
        return _Header(kind, "", epoch, number, 0, 0, 0)
    if kind != _STATES:
        raise LinkError(f"a frame of unknown kind {kind}")
    dtype = _DTYPES.get(code)
    if dtype is None:
        raise LinkError(f"hidden states of unknown type {code}")
    if not 1 <= rows <= limits.rows or columns != limits.columns:
        raise LinkError(f"hidden states [{rows}, {columns}], at most [{limits.rows}, {limits.columns}] are expected")
    if length != rows * columns * DTYPE_BYTES[dtype]:
        raise LinkError(f"{length} bytes cannot be [{rows}, {columns}] of {dtype}")
    return _Header(kind, dtype, epoch, number, rows, columns, length)


def _frame(header: _Header, data: memoryview | bytes) -> Frame:
    if header.kind == _SKIPPED:
        return Skipped(header.epoch, header.number)
    if header.kind == _KEEPALIVE:
        return Keepalive(header.epoch)
    return States(header.epoch, header.number, HiddenStates(header.dtype, header.rows, header.columns, data))


def parse_frame(body: bytes | bytearray | memoryview, limits: FrameLimits) -> Frame:
    """The frame that is exactly these bytes, where whoever carries them keeps their ends. Raises LinkError."""
    if len(body) < HEADER.size:
        raise LinkError(f"{len(body)} bytes are no frame")
    header = _read_header(body, limits)
    if len(body) != HEADER.size + header.length:
        raise LinkError(f"a frame of {header.length} bytes came with {len(body) - HEADER.size}")
    return _frame(header, memoryview(body)[HEADER.size :])


class FrameDecoder:
    """Of one link that carries bytes in pieces of any size. After a LinkError it raises nothing but the same."""

    def __init__(self, limits: FrameLimits) -> None:
        self._limits = limits
        self._buffer = bytearray()
        self._header: _Header | None = None
        self._broken: str | None = None

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """The frames that are whole now. Raises LinkError; frames before the wrong bytes are lost with it."""
        if self._broken is not None:
            raise LinkError(self._broken)
        self._buffer += data
        frames: list[Frame] = []
        try:
            while (frame := self._next()) is not None:
                frames.append(frame)
        except LinkError as error:
            self._broken = str(error)
            self._buffer = bytearray()
            raise
        return frames

    def _next(self) -> Frame | None:
        if self._header is None:
            if len(self._buffer) < HEADER.size:
                return None
            self._header = _read_header(self._buffer, self._limits)
            del self._buffer[: HEADER.size]
        header = self._header
        if len(self._buffer) < header.length:
            return None
        data = bytes(self._buffer[: header.length])
        del self._buffer[: header.length]
        self._header = None
        return _frame(header, data)
