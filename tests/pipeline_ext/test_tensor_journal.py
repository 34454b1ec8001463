"""The journal of checked ranges: kept over a kill, torn lines dropped, and checked again after a boot."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from pipeline_ext.tensor_journal import JournalLine, TensorJournal

CONTENT = bytes(range(200))


def content(file: int, start: int, length: int) -> bytes:
    return CONTENT[start : start + length]


def unread(file: int, start: int, length: int) -> bytes:
    raise AssertionError("nothing has to be checked again")


def line(start: int, length: int, file: int = 0) -> JournalLine:
    return JournalLine(file, start, length, hashlib.sha256(CONTENT[start : start + length]).digest())


def filled(path: Path) -> None:
    journal = TensorJournal(path, "boot", content)
    for each in (line(0, 10), line(50, 20), line(100, 5, file=1)):
        journal.add(each)
    journal.close()


def checked(path: Path, boot: str, content: Callable[[int, int, int], bytes] = content) -> list[list[tuple[int, int]]]:
    journal = TensorJournal(path, boot, content)
    journal.close()
    return [list(journal.checked(file)) for file in (0, 1)]


def test_within_a_boot_lines_are_believed(tmp_path: Path) -> None:
    filled(tmp_path / "journal")
    assert checked(tmp_path / "journal", "boot", unread) == [[(0, 10), (50, 70)], [(100, 105)]]


def test_a_torn_line_does_not_count_and_the_next_one_does(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    filled(path)
    path.write_bytes(path.read_bytes()[:-3])
    journal = TensorJournal(path, "boot", content)
    assert list(journal.checked(1)) == []
    journal.add(line(100, 5, file=1))
    journal.close()
    assert checked(path, "boot", unread)[1] == [(100, 105)]


def test_a_changed_line_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    filled(path)
    data = bytearray(path.read_bytes())
    data[32 + 60 + 20] ^= 1
    path.write_bytes(data)
    assert checked(path, "boot") == [[(0, 10)], []]


def test_after_a_boot_only_what_still_has_its_hash_counts(tmp_path: Path) -> None:
    filled(tmp_path / "journal")

    def lost(file: int, start: int, length: int) -> bytes:
        return bytes(length) if start == 50 else content(file, start, length)

    assert checked(tmp_path / "journal", "another boot", lost) == [[(0, 10)], [(100, 105)]]
    assert checked(tmp_path / "journal", "another boot", unread) == [[(0, 10)], [(100, 105)]]


def test_where_no_boot_is_known_nothing_is_believed(tmp_path: Path) -> None:
    filled(tmp_path / "journal")
    assert checked(tmp_path / "journal", "", lambda file, start, length: b"") == [[], []]


def test_a_forgotten_file_stays_forgotten(tmp_path: Path) -> None:
    filled(tmp_path / "journal")
    journal = TensorJournal(tmp_path / "journal", "boot", unread)
    journal.forget(0)
    journal.close()
    assert checked(tmp_path / "journal", "boot", unread) == [[], [(100, 105)]]
