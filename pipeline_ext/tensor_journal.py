"""TensorJournal: which byte ranges of fetched files have been checked, in a file that a kill cannot make lie.

A line is written once its bytes are in the file, as the system sees it, so that a process may die anywhere. A machine
may not: lines of another boot count only where the bytes still have their hash.

    line: number of the file [4], first byte [8], length [8], SHA-256 of the bytes [32], of the line so far [8]
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline_ext.range_set import RangeSet

_LINE = struct.Struct(">IQQ32s")
_SUM_BYTES = 8
_LINE_BYTES = _LINE.size + _SUM_BYTES


class JournalLine(NamedTuple):
    """One checked range of one file."""

    file: int
    start: int
    length: int
    sha256: bytes


class TensorJournal:
    """Belongs to who holds the folder's lock.

    Args:
        path: its file; may not exist yet.
        boot: names this start of the machine; where it is empty, nothing is believed without its hash.
        content: bytes of (file, start, length) as they are now; asked where a line has to be checked again.
    """

    def __init__(self, path: Path, boot: str, content: Callable[[int, int, int], bytes]) -> None:
        self._path = path
        self._boot = hashlib.sha256(boot.encode()).digest()
        kept, is_current = _read(path, self._boot if boot else b"")
        if not is_current:
            kept = [line for line in kept if hashlib.sha256(content(*line[:3])).digest() == line.sha256]
            self._write_anew(kept)
        self._lines = kept
        self._file = path.open("ab", buffering=0)

    def add(self, line: JournalLine) -> None:
        """These bytes are in their file, and have been checked."""
        self._file.write(_encoded(line))
        self._lines.append(line)

    def checked(self, file: int) -> RangeSet:
        return RangeSet((line.start, line.start + line.length) for line in self._lines if line.file == file)

    def forget(self, file: int) -> None:
        """Nothing of this file counts any more."""
        self._file.close()
        self._lines = [line for line in self._lines if line.file != file]
        self._write_anew(self._lines)
        self._file = self._path.open("ab", buffering=0)

    def close(self) -> None:
        self._file.close()

    def _write_anew(self, lines: list[JournalLine]) -> None:
        fresh = self._path.with_suffix(".new")
        with fresh.open("wb") as file:
            file.write(self._boot)
            file.writelines(_encoded(line) for line in lines)
        os.replace(fresh, self._path)


def _read(path: Path, boot: bytes) -> tuple[list[JournalLine], bool]:
    """Its whole lines up to the first broken one, and whether they are of this boot and there is nothing else."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], False
    head, body = data[:32], data[32:]
    lines = list(_lines(body))
    return lines, head == boot and len(lines) * _LINE_BYTES == len(body)


def _lines(body: bytes) -> Iterator[JournalLine]:
    for at in range(0, len(body) - _LINE_BYTES + 1, _LINE_BYTES):
        line = JournalLine(*_LINE.unpack_from(body, at))
        if _encoded(line) != body[at : at + _LINE_BYTES]:
            return
        yield line


def _encoded(line: JournalLine) -> bytes:
    packed = _LINE.pack(*line)
    return packed + hashlib.sha256(packed).digest()[:_SUM_BYTES]
