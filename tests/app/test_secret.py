"""The installation's secret: made once, for its owner only, and never shown."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.secret import SECRET_BYTES, SecretError, installation_secret
from backend.engine_settings import EngineSettings
from backend.library.files import ModelFiles


def test_it_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "data" / "secret"
    first = installation_secret(path)
    assert len(first) == SECRET_BYTES
    assert installation_secret(path) == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["secret"]
    assert installation_secret(tmp_path / "other") != first


def test_all_that_start_at_once_get_the_same(tmp_path: Path) -> None:
    for number in range(20):
        path = tmp_path / str(number) / "secret"
        with ThreadPoolExecutor(8) as pool:
            assert len({*pool.map(lambda _, path=path: installation_secret(path), range(8))}) == 1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_one_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "secret"
    secret = installation_secret(path)
    path.chmod(mode)
    with pytest.raises(SecretError, match="open to others") as caught:
        installation_secret(path)
    assert str(path) in str(caught.value)
    assert caught.value.hint
    assert secret.hex() not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 33])
def test_a_damaged_one_is_refused_and_not_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "secret"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(SecretError, match="damaged"):
        installation_secret(path)
    assert path.read_bytes() == content


def test_a_link_a_pipe_and_a_folder_are_refused(tmp_path: Path) -> None:
    installation_secret(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "folder").mkdir(mode=0o700)
    (tmp_path / "file").touch()
    for name in ("link", "nowhere", "pipe", "folder", "file/secret"):
        with pytest.raises(SecretError):
            installation_secret(tmp_path / name)


def test_settings_do_not_show_it() -> None:
    files = ModelFiles(name="m", format="gguf", weights=("/w",), folder="/w", bytes=1)
    settings = EngineSettings(files=files, cache_secret=b"canary" * 6, threads=3)
    assert "canary" not in f"{settings} {settings!r}"
    assert "threads=3" in repr(settings)
