"""Every kind of broken, foreign or strange record is a counted miss, and never a page."""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcache.tiers.disk import DiskTier
from kvcache.tiers.record import HEADER_BYTES, MAGIC, SIGNATURE_BYTES, Miss, PageShape
from tests.kvcache.tiers.disk_pages import (
    SHAPE,
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


@given(heads=st.integers(1, 5), head_bytes=st.integers(1, 300), rest=st.integers(0, 50), data=st.data())
def test_some_heads_are_read_and_verified_alone(
    tmp_path_factory: pytest.TempPathFactory, heads: int, head_bytes: int, rest: int, data: st.DataObject
) -> None:
    shape = PageShape(heads, head_bytes, heads * head_bytes + rest)
    path = tmp_path_factory.mktemp("heads") / "pages"
    tier = make(path, shape=shape)
    whole = page(1, shape)
    assert tier.store(key(1), memoryview(whole))
    assert load(tier, 1, shape) == whole
    first = data.draw(st.integers(0, heads - 1))
    behind = data.draw(st.integers(first + 1, heads))
    start, stop = first * head_bytes, behind * head_bytes
    # A change outside these heads is none of theirs; inside, it is found.
    outside = [place for place in range(shape.page_bytes) if not start <= place < stop]
    if outside:
        flip(record(path, 1), shape.prefix_bytes + data.draw(st.sampled_from(outside)))
    buffer = bytearray(stop - start)
    assert tier.load(key(1), memoryview(buffer), heads=(first, behind)) is None
    assert bytes(buffer) == whole[start:stop]
    flip(record(path, 1), shape.prefix_bytes + data.draw(st.integers(start, stop - 1)))
    assert tier.load(key(1), memoryview(buffer), heads=(first, behind)) is Miss.FORGED
    tier.close()


def test_no_bit_of_a_record_can_change_unseen(path: Path) -> None:
    """Every bit of the header, and some of each signature and segment."""
    tier = make(path)
    header = [(place, bit) for place in range(HEADER_BYTES) for bit in range(8)]
    signatures = [(place, place % 8) for place in range(HEADER_BYTES, SHAPE.prefix_bytes, 5)]
    segments = [
        (SHAPE.prefix_bytes + edge, 7)
        for part in SHAPE.segments
        for edge in (part.start, part[-1], part[len(part) // 2])
    ]
    seen: Counter[Miss] = Counter()
    for place, bit in (*header, *signatures, *segments):
        store(tier, 1)
        flip(record(path, 1), place, bit)
        miss = load(tier, 1)
        assert isinstance(miss, Miss), f"bit {bit} of byte {place}"
        seen[miss] += 1
        assert not record(path, 1).exists()
        assert key(1) not in tier
    assert set(seen) == {Miss.FOREIGN, Miss.MISPLACED, Miss.FORGED}
    statistics = tier.statistics()
    assert statistics.misses == {reason.value: number for reason, number in seen.items()}
    assert statistics.rejected == sum(seen.values())
    assert (statistics.pages, statistics.bytes) == (0, 0)


@pytest.mark.parametrize(
    "size",
    [
        0, 1, len(MAGIC), HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 1, HEADER_BYTES + SIGNATURE_BYTES,
        SHAPE.prefix_bytes - 1, SHAPE.prefix_bytes, SHAPE.prefix_bytes + 1000, SHAPE.record_bytes - 1,
    ],
)  # fmt: skip
def test_a_truncated_record_is_a_miss(path: Path, size: int) -> None:
    tier = make(path)
    store(tier, 1)
    os.truncate(record(path, 1), size)
    assert load(tier, 1) is Miss.TRUNCATED
    store(tier, 1)
    assert load(tier, 1) == page(1)


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda file: overwrite(file, 8, b"\x02"), Miss.FOREIGN),
        (lambda file: overwrite(file, 12, b"\xff" * 4), Miss.FOREIGN),
        (lambda file: overwrite(file, 16, b"\xff" * 8), Miss.FOREIGN),
        (lambda file: overwrite(file, 24, b"\xff" * 8), Miss.FOREIGN),
        (lambda file: overwrite(file, 24, b"\0" * 8), Miss.FOREIGN),
        (lambda file: overwrite(file, SHAPE.record_bytes, b"more"), Miss.FOREIGN),
        (lambda file: file.write_bytes(b"\0" * SHAPE.record_bytes), Miss.FOREIGN),
        (lambda file: file.write_bytes(random.Random(0).randbytes(SHAPE.record_bytes)), Miss.FOREIGN),
        (lambda file: (file.unlink(), file.mkdir()), Miss.UNREADABLE),
        (lambda file: (file.unlink(), os.mkfifo(file)), Miss.UNREADABLE),
        (lambda file: file.unlink(), Miss.MISSING),
        (lambda file: shutil.rmtree(file.parent), Miss.MISSING),
    ],
)
def test_a_strange_record_is_a_miss(path: Path, damage: Callable[[Path], object], reason: Miss) -> None:
    tier = make(path)
    store(tier, 1, 2)
    damage(record(path, 1))
    assert load(tier, 1) is reason
    assert tier.statistics().misses == {reason.value: 1}
    assert key(1) not in tier
    if record(path, 2).exists():
        assert load(tier, 2) == page(2)
    assert tier.writable


def test_a_link_in_a_records_place_is_not_followed(path: Path, tmp_path: Path) -> None:
    tier = make(path)
    store(tier, 1)
    outside = tmp_path / "outside"
    shutil.move(record(path, 1), outside)
    record(path, 1).symlink_to(outside)
    assert load(tier, 1) is Miss.UNREADABLE
    assert outside.exists()
    tier.close()
    with opened(path) as again:
        assert kept(again, 3) == []
        store(again, 1)
    assert not record(path, 1).is_symlink()
    assert outside.stat().st_size == SHAPE.record_bytes


def test_a_link_in_a_subfolders_place_is_not_followed(path: Path, tmp_path: Path) -> None:
    tier = make(path)
    outside = tmp_path / "outside"
    outside.mkdir()
    (path / "ab").symlink_to(outside)
    assert not tier.store(key(1), memoryview(page(1)))
    assert tier.writable
    assert list(outside.iterdir()) == []
    assert load(tier, 1) is Miss.UNREADABLE


def test_records_of_another_key_model_secret_or_shape_are_misses(path: Path, tmp_path: Path) -> None:
    with opened(path) as tier:
        store(tier, 1, 2)
        shutil.copy(record(path, 1), record(path, 2))
        assert load(tier, 2) is Miss.MISPLACED
    original = record(path, 1).read_bytes()
    others: list[tuple[DiskTier, Miss]] = [
        (make(tmp_path / "a", namespace=b"m" * 32), Miss.FOREIGN),
        (make(tmp_path / "b", secret=b"t" * 32), Miss.FORGED),
        (make(tmp_path / "c", shape=PageShape(2, 1500, 3100)), Miss.FOREIGN),
    ]
    for tier, reason in others:
        file = record(tier._folder.path, 1)
        file.parent.mkdir()
        file.write_bytes(original)
        assert load(tier, 1) is reason
        tier.close()


def test_one_segment_cannot_stand_for_another(path: Path) -> None:
    """Two heads with their signatures swapped are all signed bytes, at the wrong places."""
    tier = make(path)
    store(tier, 1)
    data = bytearray(record(path, 1).read_bytes())
    for start, size in ((HEADER_BYTES, SIGNATURE_BYTES), (SHAPE.prefix_bytes, SHAPE.head_bytes)):
        one, two = slice(start, start + size), slice(start + size, start + 2 * size)
        data[one], data[two] = data[two], data[one]
    record(path, 1).write_bytes(data)
    assert load(tier, 1) is Miss.FORGED
