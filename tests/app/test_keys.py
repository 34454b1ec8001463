"""Keys: hashed, private, seen by running servers, and never an open door."""

from __future__ import annotations

import stat
from pathlib import Path

import platformdirs
import pytest
from typer.testing import CliRunner

from app.commands.keys import keys as commands
from app.keys import ApiKeyError, KeyNeededError, KeyStore, check_binding


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "keys.json"


def test_a_key_opens_until_it_is_revoked_also_for_a_store_that_was_open_before(path: Path):
    running, command = KeyStore(path), KeyStore(path)
    assert not running.in_use()
    first, second = command.create("laptop"), command.create("phone")
    assert running.in_use()
    assert running.allows(first)
    assert running.allows(second)
    command.revoke("laptop")
    assert not running.allows(first)
    assert running.allows(second)


def test_the_file_holds_no_key_and_is_its_owner_s(path: Path):
    key = KeyStore(path).create("laptop")
    assert key not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [entry.name for entry in path.parent.iterdir()] == ["keys.json"]


@pytest.mark.parametrize("key", ["", "sw-", "sw-x", "k" * 257, "\ud800", "ключ"])
def test_other_texts_do_not_open(path: Path, key: str):
    store = KeyStore(path)
    store.create("laptop")
    assert not store.allows(key)


def test_a_hash_is_not_a_key(path: Path):
    store = KeyStore(path)
    store.create("laptop")
    assert not store.allows(store.list()[0].hash)


def test_a_broken_file_locks(path: Path):
    store = KeyStore(path)
    key = store.create("laptop")
    path.write_text("{")
    assert store.in_use()
    assert not store.allows(key)
    with pytest.raises(ApiKeyError, match="cannot be read"):
        store.create("phone")


@pytest.mark.parametrize("name", ["", "a b", "../x", "x" * 65, "-x", "x\n"])
def test_bad_names_are_refused(path: Path, name: str):
    with pytest.raises(ApiKeyError, match="cannot name"):
        KeyStore(path).create(name)


def test_names_are_unique_and_must_exist(path: Path):
    store = KeyStore(path)
    store.create("laptop")
    with pytest.raises(ApiKeyError, match="already"):
        store.create("laptop")
    with pytest.raises(ApiKeyError, match="no key named"):
        store.revoke("phone")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "::1", "[::1]"])
def test_loopback_needs_no_key(path: Path, host: str):
    assert check_binding(host, KeyStore(path))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.2", "example.org"])
def test_beyond_loopback_a_key_is_needed(path: Path, host: str):
    store = KeyStore(path)
    with pytest.raises(KeyNeededError, match="shardwise keys create"):
        check_binding(host, store)
    store.create("laptop")
    assert not check_binding(host, store)


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(platformdirs, "user_data_dir", lambda name: str(tmp_path / name))
    run = CliRunner().invoke
    made = run(commands, ["create", "laptop"])
    key = made.stdout.strip()
    store = KeyStore(tmp_path / "shardwise" / "keys.json")
    assert store.allows(key)
    listed = run(commands, ["list"]).stdout
    assert listed.startswith("laptop\t")
    assert key not in listed
    assert run(commands, ["revoke", "laptop"]).exit_code == 0
    assert not store.in_use()
    assert isinstance(run(commands, ["revoke", "laptop"]).exception, ApiKeyError)
