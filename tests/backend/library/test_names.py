"""What a MODEL argument means."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend.errors import ModelNotFoundError
from backend.library.names import FolderName, GgufName, HubName, StarterName, parse


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("starter", StarterName()),
        ("org/name", HubName("org/name")),
        ("hf://org/name", HubName("org/name")),
        ("org/na.me-1_b@refs/pr/3", HubName("org/na.me-1_b", "refs/pr/3")),
        ("org/name@" + "a" * 40, HubName("org/name", "a" * 40)),
        ("org/name:q/model.Q4_K_M.gguf", HubName("org/name", None, "q/model.Q4_K_M.gguf")),
        ("org/name@v1:model.gguf", HubName("org/name", "v1", "model.gguf")),
    ],
)
def test_names_that_need_no_disk(text: str, meaning: object) -> None:
    assert parse(text) == meaning


def test_a_repository_name_reads_as_it_was_written() -> None:
    for text in ("org/name", "org/name@v1", "org/name@v1:a.gguf"):
        assert str(parse(text)) == text


def test_folders_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "org" / "name"
    folder.mkdir(parents=True)
    assert parse("org/name") == HubName("org/name")
    assert parse("./org/name") == parse("org/name/") == FolderName(folder)
    (folder / "config.json").write_text("{}")
    assert parse("org/name") == FolderName(folder)
    assert parse("hf://org/name") == HubName("org/name")
    (folder / "some.GGUF").write_bytes(b"")
    assert parse("org/name/some.GGUF") == GgufName(folder / "some.GGUF")


@pytest.mark.parametrize(
    "text",
    [
        *("", "  ", "nothing", "a/b/c", "org/name@", "org/name@../../x", "../up/name", "org/..", "/no/such/folder"),
        *("hf://", "hf://one", "missing.gguf", "./missing.gguf", "org/na--me", "x\0y/z", "org/name:../a.gguf"),
        *("a" * 5000, "~nobody-of-this-name/model", "org/name\n", "org//name"),
    ],
)
def test_anything_else_is_not_found(text: str) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        parse(text)
    assert "org/name[@revision]" in caught.value.hint


def test_a_file_of_another_kind_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(ModelNotFoundError, match=r"not in '\.gguf'"):
        parse(str(tmp_path / "model.bin"))
