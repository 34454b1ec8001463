"""A disk that is full, broken or read-only costs hits, and nothing else."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvcache.tiers.disk import BACK_OFF_SECONDS
from kvcache.tiers.folder import clear
from kvcache.tiers.record import Miss
from tests.kvcache.tiers.disk_pages import (
    SHAPE,
    Clock,
    FaultyFolder,
    kept,
    key,
    load,
    make,
    opened,
    page,
    record,
    store,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pages"


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_failed_write_is_counted_and_not_tried_again_for_a_while(path: Path, error: int) -> None:
    clock, folder = Clock(), FaultyFolder(path)
    tier = make(path, clock=clock, folder=folder)
    store(tier, 1)
    folder.write_error = error
    assert not tier.store(key(2), memoryview(page(2)))
    assert not tier.writable
    assert load(tier, 1) == page(1)
    assert sorted(file.name for file in (path / "ab").iterdir()) == [key(1).hex()]
    folder.write_error = 0
    clock.now += BACK_OFF_SECONDS - 1
    tier.tend()
    assert not tier.writable
    assert not tier.store(key(2), memoryview(page(2)))
    clock.now += 1
    tier.tend()
    assert tier.writable
    store(tier, 2)
    assert (tier.statistics().failed_writes, tier.statistics().pages) == (1, 2)
    assert tier.statistics().bytes == 2 * SHAPE.record_bytes


def test_an_eviction_that_fails_stops_writing_and_keeps_the_account(path: Path) -> None:
    clock, folder = Clock(), FaultyFolder(path)
    tier = make(path, 2 * SHAPE.record_bytes, clock=clock, folder=folder)
    store(tier, 1, 2)
    folder.remove_error = errno.EROFS
    assert not tier.store(key(3), memoryview(page(3)))
    assert not tier.writable
    folder.remove_error = 0
    clock.now += BACK_OFF_SECONDS
    tier.tend()
    assert tier.statistics().bytes == 2 * SHAPE.record_bytes
    store(tier, 3)
    assert kept(tier, 4) == [2, 3]


def test_a_disk_that_cannot_be_read_is_a_miss(path: Path) -> None:
    folder = FaultyFolder(path)
    tier = make(path, folder=folder)
    store(tier, 1)
    folder.read_error = errno.EIO
    assert load(tier, 1) is Miss.UNREADABLE
    assert tier.writable
    assert record(path, 1).exists()  # the disk may be well again tomorrow


def test_a_file_size_limit_is_a_failed_write(path: Path) -> None:
    """A real refusal of the system's, in the middle of a record."""
    tier = make(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SHAPE.record_bytes // 2, hard))
    try:
        assert not tier.store(key(1), memoryview(page(1)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not tier.writable
    assert list((path / "ab").iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB, where the tests may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=0700", "none", str(place)]
    if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_stops_stores_and_serves_what_it_has(small_disk: Path) -> None:
    clock = Clock()
    tier = make(small_disk / "pages", 1 << 30, clock=clock)
    number = 0
    while tier.store(key(number), memoryview(page(number))):
        number += 1
    assert 10 < number < 100
    assert not tier.writable
    assert tier.statistics().failed_writes == 1
    assert all(load(tier, one) == page(one) for one in range(number))
    clear(small_disk / "pages")
    clock.now += BACK_OFF_SECONDS
    tier.tend()
    store(tier, 1)
    assert tier.statistics().pages == 1
    tier.close()


def test_a_read_only_disk_is_read(small_disk: Path) -> None:
    with opened(small_disk) as tier:
        store(tier, 1)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with opened(small_disk) as tier:
        assert load(tier, 1) == page(1)
        assert not tier.writable
        assert not tier.store(key(2), memoryview(page(2)))
        assert tier.statistics().failed_writes == 0
