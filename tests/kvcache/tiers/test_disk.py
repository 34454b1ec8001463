"""DiskTier: round trips, restarts, budget, order of use, one writer among servers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvcache.tiers.disk import BACK_OFF_SECONDS, TOUCH_SECONDS
from kvcache.tiers.record import Miss
from kvcache.tiers.record_folder import CacheFolderError
from tests.kvcache.tiers.disk_pages import (
    SHAPE,
    Clock,
    FaultyFolder,
    flip,
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


def test_a_page_comes_back_also_after_a_restart(path: Path) -> None:
    with opened(path) as tier:
        assert (key(1) in tier, load(tier, 1)) == (False, Miss.MISSING)
        store(tier, 1, 2)
        assert key(1) in tier
        assert load(tier, 1) == page(1)
    with opened(path) as tier:
        assert kept(tier, 5) == [1, 2]
        assert load(tier, 2) == page(2)
        statistics = tier.statistics()
    assert (statistics.pages, statistics.bytes) == (2, 2 * SHAPE.record_bytes)
    assert os.stat(path).st_mode & 0o777 == 0o700
    assert os.stat(record(path, 1)).st_mode & 0o777 == 0o600
    assert os.stat(record(path, 1)).st_size == SHAPE.record_bytes


def test_the_least_recently_used_go_first_also_after_a_restart(path: Path) -> None:
    clock = Clock()
    folder = FaultyFolder(path)
    tier = make(path, 4 * SHAPE.record_bytes, clock=clock, folder=folder)
    store(tier, 0, 1, 2, 3)
    clock.now += TOUCH_SECONDS
    tier.touch(key(0))
    tier.touch(key(0))
    tier.touch(key(99))
    assert folder.touched == []
    tier.tend()
    assert folder.touched == [key(0)]
    store(tier, 4)
    assert kept(tier, 6) == [0, 2, 3, 4]
    tier.close()
    with opened(path, budget=3 * SHAPE.record_bytes) as again:
        assert kept(again, 6) == [0, 3, 4]
        assert again.statistics().evictions == 1
        store(again, 5)
        assert kept(again, 6) == [0, 4, 5]
        store(again, 1)
        assert kept(again, 6) == [1, 4, 5]
    assert len(list((path / "ab").iterdir())) == 3


def test_a_touched_record_is_noted_at_most_once_a_minute(path: Path) -> None:
    clock, folder = Clock(), FaultyFolder(path)
    tier = make(path, clock=clock, folder=folder)
    store(tier, 1)
    for _ in range(10):
        clock.now += TOUCH_SECONDS / 4
        tier.touch(key(1))
        tier.tend()
    assert len(folder.touched) == 2


def test_the_budget_counts_all_models_and_refuses_what_never_fits(path: Path) -> None:
    one = make(path, 3 * SHAPE.record_bytes)
    store(one, 1, 2)
    one.close()
    other = make(path, 3 * SHAPE.record_bytes, namespace=b"m" * 32)
    store(other, 3, 4)
    assert kept(other, 5) == [2, 3, 4]
    other.close()
    with opened(path, budget=SHAPE.record_bytes - 1) as small:
        assert small.statistics().pages == 0
        assert not small.store(key(1), memoryview(page(1)))
        assert small.statistics().bytes == 0
        assert small.writable


def test_what_is_no_folder_of_ours_is_refused(tmp_path: Path) -> None:
    file, shared = tmp_path / "file", tmp_path / "shared"
    file.write_text("")
    shared.mkdir()
    shared.chmod(0o770)
    with pytest.raises(CacheFolderError) as refused:
        make(file)
    assert "not a folder" in refused.value.why
    with pytest.raises(CacheFolderError) as refused:
        make(shared)
    assert refused.value.hint == f"Run: chmod go-w {shared}"
    with pytest.raises(CacheFolderError, match="not a folder"):
        make(file / "below")


def test_what_no_record_can_have_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="secret"):
        make(path, secret=b"")
    with pytest.raises(ValueError, match="namespace"):
        make(path, namespace=b"")
    tier = make(path)
    with pytest.raises(ValueError, match="layout"):
        tier.store(key(1), memoryview(b"short"))
    with pytest.raises(ValueError, match="key"):
        tier.store(b"short", memoryview(page(1)))


def test_leftovers_of_a_dead_writer_are_removed_and_strange_files_left(path: Path) -> None:
    with opened(path) as tier:
        store(tier, 1)
    left = path / "ab" / f"{key(2).hex()}.12345.part"
    left.write_bytes(b"half")
    strange = [path / "ab" / "notes.txt", path / "ab" / ("cd" * 32), path / "abc"]
    for file in strange:
        file.write_text("mine")
    with opened(path) as tier:
        assert tier.statistics().pages == 1
    assert not left.exists()
    assert all(file.read_text() == "mine" for file in strange)


def test_a_reader_sees_what_the_writer_brings_and_takes_over_when_it_ends(path: Path) -> None:
    writer, clock = make(path), Clock()
    store(writer, 1)
    reader = make(path, clock=clock)
    assert (writer.writable, reader.writable) == (True, False)
    assert load(reader, 1) == page(1)
    store(writer, 2)
    assert kept(reader, 5) == [1]
    clock.now += BACK_OFF_SECONDS
    reader.tend()
    assert kept(reader, 5) == [1, 2]
    record(path, 2).unlink()
    assert load(reader, 2) is Miss.MISSING
    flip(record(path, 1), -1)
    assert load(reader, 1) is Miss.FORGED
    assert record(path, 1).exists()  # only the writer removes
    clock.now += BACK_OFF_SECONDS
    reader.tend()
    assert kept(reader, 5) == []
    writer.close()
    clock.now += BACK_OFF_SECONDS
    reader.tend()
    assert reader.writable
    store(reader, 3)
    reader.close()
