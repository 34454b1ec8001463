"""A page folder as people see it, and clearing it: by model, by owner, all, and nothing that is not ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvcache.tiers.disk import DiskTier
from kvcache.tiers.folder import ClearResult, clear, disk_usage
from kvcache.tiers.record import PageShape
from kvcache.tiers.record_folder import CacheFolderError

SHAPE = PageShape(2, 100, 256)
ONE, OTHER = b"1" * 32, b"2" * 32
ALICE, BOB = b"a" * 16, b"b" * 16


def fill(folder: Path, namespace: bytes, model: str, owners: list[bytes]) -> None:
    tier = DiskTier.open(folder, 1 << 20, secret=b"s" * 32, namespace=namespace, model=model, shapes=(SHAPE,))
    for number, owner in enumerate(owners):
        assert tier.store(namespace[:31] + bytes([number]), memoryview(bytes(256)), owner=owner)
    tier.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fill(tmp_path / "pages", ONE, "first/model", [ALICE, BOB, b""])
    fill(tmp_path / "pages", OTHER, "other\x1b[31m/model\n", [ALICE])
    return tmp_path / "pages"


def test_usage_names_each_model_newest_first(folder: Path) -> None:
    other, one = disk_usage(folder)
    assert (one.namespace, one.model, one.pages, one.bytes) == (ONE, "first/model", 3, 3 * SHAPE.record_bytes)
    assert (other.namespace, other.model, other.pages) == (OTHER, "other[31m/model", 1)
    assert other.newest > one.newest > 1e9


def test_clearing_an_owner_leaves_everybody_else(folder: Path) -> None:
    assert clear(folder, owner=ALICE) == ClearResult(2, 2 * SHAPE.record_bytes)
    assert [(usage.namespace, usage.pages) for usage in disk_usage(folder)] == [(ONE, 2)]
    assert clear(folder, owner=ALICE) == ClearResult(0, 0)
    assert clear(folder, namespace=ONE, owner=BOB).pages == 1


def test_clearing_a_namespace_leaves_the_other_model(folder: Path) -> None:
    assert clear(folder, namespace=ONE).pages == 3
    (other,) = disk_usage(folder)
    assert other.namespace == OTHER
    assert other.model


def test_clearing_all_removes_only_what_is_ours(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    (folder / "31" / "photo.jpg").write_text("mine too")
    (folder / "31" / f"{'31' * 32}.123.part").write_text("left by a writer")
    assert clear(folder).pages == 4
    assert disk_usage(folder) == ()
    left = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert left == ["31/photo.jpg", "lock", "notes.txt"]


def test_a_record_that_says_nothing_is_listed_and_cleared_with_all(folder: Path) -> None:
    path = next(path for path in (folder / "31").iterdir())
    path.write_bytes(b"garbage")
    assert {usage.namespace for usage in disk_usage(folder)} == {b"", ONE, OTHER}
    assert clear(folder, owner=BOB).pages <= 1
    clear(folder)
    assert disk_usage(folder) == ()


def test_links_are_neither_followed_nor_cleared(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "outside"
    secret.mkdir()
    victim = secret / ("ab" * 32)
    victim.write_bytes(b"precious")
    (folder / "ab").symlink_to(secret)
    (folder / "31" / ("31" * 32)).symlink_to(victim)
    assert sum(usage.pages for usage in disk_usage(folder)) == 4
    assert clear(folder).pages == 4
    assert victim.read_bytes() == b"precious"


def test_no_folder_holds_nothing(tmp_path: Path) -> None:
    assert disk_usage(tmp_path / "none") == ()
    assert clear(tmp_path / "none") == ClearResult(0, 0)
    assert not (tmp_path / "none").exists()


def test_what_is_no_folder_of_ours_is_refused_with_a_reason(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(CacheFolderError, match="not a folder"):
        disk_usage(file)
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(CacheFolderError, match="chmod go-w"):
        clear(shared)
