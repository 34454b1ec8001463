"""Times main memory and a disk for some tenths of a second: a program of its own, because a disk may hang.

`python -m backend.hardware.probe_host FOLDER CORES` writes one line of JSON (`HostReport`). It leaves nothing behind.
"""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np

from backend.hardware.host_probe import HostReport

_MIB = 1 << 20
# Bytes that all threads copy from together: more than processors keep near them, little of a machine's memory.
_MEMORY, _MEMORY_LEAST = 256 * _MIB, 16 * _MIB
_ROUNDS, _ROUND = 3, 0.1  # seconds; the best round counts, since others use the machine too
# A read of a disk: a model's file if one of this size is there, else one that is written first.
_READ, _READ_LEAST, _CHUNK, _READ_SECONDS = 256 * _MIB, 64 * _MIB, 8 * _MIB, 0.4
_WRITTEN, _WRITE_SECONDS = 128 * _MIB, 0.4
_FILES = 500  # of a library looked through for a file that is large enough


def main(folder: str, cores: str) -> None:
    disk, direct = disk_rate(Path(folder))
    report = HostReport(memory=memory_rate(int(cores)), disk=disk, disk_direct=direct)
    sys.stdout.buffer.write(msgspec.json.encode(report))


def memory_rate(cores: int) -> float:
    """GB/s read and written by copies on so many threads."""
    size = max(_MEMORY_LEAST, _MEMORY // cores)
    # Filled, so that every page is there before the time counts.
    pairs = [(np.full(size, 1, np.uint8), np.full(size, 2, np.uint8)) for _ in range(cores)]
    return max(_round(pairs) for _ in range(_ROUNDS))


def _round(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    begin = time.perf_counter()
    deadline, counts = begin + _ROUND, [0] * len(pairs)

    def copy(number: int) -> None:
        source, target = pairs[number]
        while time.perf_counter() < deadline:
            np.copyto(target, source)  # without the interpreter's lock
            counts[number] += 2 * source.nbytes

    threads = [threading.Thread(target=copy, args=(number,)) for number in range(len(pairs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - begin) / 1e9


def disk_rate(folder: Path) -> tuple[float, bool]:
    """GB/s of a read from its file system, and whether it went around the page cache; 0 where nothing can be read."""
    with suppress(OSError):
        existing = next(place for place in (folder, *folder.parents) if place.is_dir())
        for path in _models(existing):
            return _timed(lambda flags, path=path: os.open(path, os.O_RDONLY | flags))
        with tempfile.TemporaryFile(dir=existing) as file:  # without a name, so that it goes with this program
            _write(file.fileno())
            return _timed(lambda flags: os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY | flags))
    return 0.0, False


def _models(folder: Path) -> Iterator[Path]:
    """Large files of a library of models (`models--.../blobs/...`), not looked for long."""
    for path in islice(folder.glob("*/blobs/*"), _FILES):
        if path.is_file() and path.stat().st_size >= _READ_LEAST:
            yield path


def _write(descriptor: int) -> None:
    """Bytes that no file system makes smaller, all of them on the disk. Stops early on a slow one."""
    block, deadline = os.urandom(_CHUNK), time.perf_counter() + _WRITE_SECONDS
    for _ in range(_WRITTEN // _CHUNK):
        os.write(descriptor, block)
        os.fdatasync(descriptor)
        if time.perf_counter() > deadline:
            break


def _timed(opened: Callable[[int], int]) -> tuple[float, bool]:
    """Reads around the page cache, or, where a file system has no such way, what was dropped from it before."""
    for flags in (os.O_DIRECT, 0):
        with suppress(OSError):
            descriptor = opened(flags)
            try:
                if not flags:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                return _read(descriptor), bool(flags)
            finally:
                os.close(descriptor)
    return 0.0, False


def _read(descriptor: int) -> float:
    begin, count = time.perf_counter(), 0
    with mmap.mmap(-1, _CHUNK) as buffer:  # begins at a page, as reads around the cache ask
        while count < _READ and time.perf_counter() - begin < _READ_SECONDS:
            received = os.readv(descriptor, [buffer])
            count += received
            if received < _CHUNK:
                break
    return count / (time.perf_counter() - begin) / 1e9


if __name__ == "__main__":
    main(*sys.argv[1:])
