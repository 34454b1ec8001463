"""Shared by the tests of the disk tier: pages whose bytes follow from their number, tiers, a clock, a faulty folder."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kvcache.tiers.disk import DiskTier
from kvcache.tiers.record import Miss, PageShape
from kvcache.tiers.record_folder import RecordFolder

# Three heads and a rest, so three segments of one size and one of another.
SHAPE = PageShape(3, 1000, 3100)
SECRET, NAMESPACE = b"s" * 32, b"n" * 32
ROOM = 100 * SHAPE.record_bytes


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FaultyFolder(RecordFolder):
    """Raises the given errors where the system would, writes in the middle of a record."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.write_error = self.read_error = self.remove_error = 0
        self.touched: list[bytes] = []

    def append(self, number: int, data: memoryview) -> None:
        if self.write_error:
            super().append(number, data[: len(data) // 2])
            raise OSError(self.write_error, os.strerror(self.write_error))
        super().append(number, data)

    def read(self, number: int, into: memoryview, offset: int) -> bool:
        if self.read_error and offset:
            raise OSError(self.read_error, os.strerror(self.read_error))
        return super().read(number, into, offset)

    def remove(self, key: bytes) -> None:
        if self.remove_error:
            raise OSError(self.remove_error, os.strerror(self.remove_error))
        super().remove(key)

    def touch(self, key: bytes, used: int) -> None:
        self.touched.append(key)
        super().touch(key, used)


def make(
    path: Path,
    budget: int = ROOM,
    *,
    secret: bytes = SECRET,
    namespace: bytes = NAMESPACE,
    shape: PageShape = SHAPE,
    clock: Callable[[], float] | None = None,
    folder: RecordFolder | None = None,
) -> DiskTier:
    return DiskTier(
        folder or RecordFolder(path), budget, secret=secret, namespace=namespace, model="a model", shapes=(shape,),
        clock=clock or Clock(),
    )  # fmt: skip


@contextmanager
def opened(path: Path, budget: int = ROOM) -> Iterator[DiskTier]:
    tier = make(path, budget)
    try:
        yield tier
    finally:
        tier.close()


def key(number: int) -> bytes:
    """Keys of one subfolder, so that their files lie beside each other."""
    return b"\xab" + number.to_bytes(31, "big")


def page(number: int, shape: PageShape = SHAPE) -> bytes:
    return random.Random(number).randbytes(shape.page_bytes)


def load(tier: DiskTier, number: int, shape: PageShape = SHAPE) -> bytes | Miss:
    """What a server would see: the page, or why there is none."""
    buffer = bytearray(shape.page_bytes)
    miss = tier.load(key(number), memoryview(buffer))
    return bytes(buffer) if miss is None else miss


def store(tier: DiskTier, *numbers: int) -> None:
    for number in numbers:
        assert tier.store(key(number), memoryview(page(number)), owner=b"o" * 16)


def record(path: Path, number: int) -> Path:
    return path / "ab" / key(number).hex()


def flip(file: Path, place: int, bit: int = 0) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1 << bit
    file.write_bytes(data)


def kept(tier: DiskTier, count: int) -> list[int]:
    return [number for number in range(count) if key(number) in tier]
