"""`shardwise cache` and the pages of a revoked key, over records as the disk tier writes them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from app.commands.cache import CacheCommandError, cache
from app.commands.keys import keys
from app.keys import default_key_store
from app.secret import installation_secret
from backend.cache_identity import owner_tag
from kvcache.tiers.folder import disk_usage
from kvcache.tiers.record import PageShape, RecordHeader
from kvcache.tiers.record_folder import RecordFolder

SHAPE = PageShape(1, 1000, 1000)


@pytest.fixture(autouse=True)
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name))


def write(folder: Path, model: str, number: int, owner: bytes = b"") -> None:
    records = RecordFolder(folder)
    namespace = model[:1].encode() * 32
    key = bytes([number]) * 32
    header = RecordHeader.make(key, namespace, owner, SHAPE).pack()
    records.write(key, [header, bytes(SHAPE.record_bytes - len(header))], 10**18 * number)
    records.name_model(namespace, model)
    records.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "CACHE" / "shardwise" / "pages"
    found.parent.mkdir(parents=True)
    for number, model in enumerate(("starter", "starter", "org/other"), 1):
        write(found, model, number)
    return found


def run(*arguments: str, answer: str | None = None) -> Result:
    return CliRunner().invoke(cache, list(arguments), input=answer)


def test_list_shows_each_model_the_last_used_first(folder: Path) -> None:
    lines = run("list").output.splitlines()
    assert [line.split()[0] for line in lines] == ["org/other", "starter"]
    assert [line.split()[2:4] for line in lines] == [["1", "pages"], ["2", "pages"]]
    rows = json.loads(run("list", "--json").output)
    assert [(row["model"], row["pages"], row["bytes"]) for row in rows] == [
        ("org/other", 1, SHAPE.record_bytes),
        ("starter", 2, 2 * SHAPE.record_bytes),
    ]


def test_size_tells_the_budget_where_the_settings_have_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"in 3 pages, in {folder}" in run("size").output
    monkeypatch.setenv("SHARDWISE_DISK_CACHE", "5MB")
    assert json.loads(run("size", "--json").output) == {
        "folder": str(folder),
        "pages": 3,
        "bytes": 3 * SHAPE.record_bytes,
        "budget": 5_000_000,
    }


def test_clear_asks_and_takes_one_model_or_all(folder: Path) -> None:
    assert run("clear", answer="n\n").exit_code == 1
    assert len(disk_usage(folder)) == 2
    assert "Removed 2 pages" in run("clear", "--model", "starter", answer="y\n").output
    assert [one.model for one in disk_usage(folder)] == ["org/other"]
    assert isinstance(run("clear", "--model", "starter", "--yes").exception, CacheCommandError)
    assert "Removed 1 pages" in run("clear", "--yes").output
    assert disk_usage(folder) == ()


def test_a_folder_that_is_not_there_is_said_and_not_made(tmp_path: Path) -> None:
    for command in (["list"], ["size"], ["clear", "--yes"]):
        shown = run(*command, "--cache-dir", str(tmp_path / "nowhere"))
        assert shown.exit_code == 0
        assert "is not there" in shown.output
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_that_others_write_to_is_refused(folder: Path) -> None:
    folder.chmod(0o777)
    assert isinstance(run("list").exception, CacheCommandError)


def test_revoking_a_key_removes_its_pages_and_nobody_else_s(folder: Path, tmp_path: Path, monkeypatch) -> None:
    moved = tmp_path / "moved"
    monkeypatch.setenv("SHARDWISE_CACHE_DIR", str(moved))
    store = default_key_store()
    for name in ("one", "two"):
        store.create(name)
    tags = [owner_tag(installation_secret(), record.id) for record in store.list()]
    for place in (folder, moved):
        write(place, "starter", 10, tags[0])
        write(place, "starter", 11, tags[1])
    shown = CliRunner().invoke(keys, ["revoke", "one"])
    assert "Removed 2 cached pages" in shown.output
    assert sum(one.pages for one in disk_usage(folder)) == 4
    assert sum(one.pages for one in disk_usage(moved)) == 1


def test_it_needs_no_torch() -> None:
    program = "import sys, app.commands.cache, kvcache.tiers.folder; print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "False\n"
    )
