"""Listing and removing: what is installed shows, and nothing of the user's is touched."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save

from backend.errors import ModelNotFoundError, SettingError
from backend.library.catalogue import InstalledModel, catalogue, remove
from backend.library.files import ModelFiles

COMMIT = "a" * 40


@pytest.fixture
def hub_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("SHARDWISE_CACHE_HOME", str(tmp_path / "ours"))
    return tmp_path / "hub"


def install(hub_cache: Path, repository: str, files: dict[str, bytes], commit: str = COMMIT, ref: str = "main") -> Path:
    storage = hub_cache / f"models--{repository.replace('/', '--')}"
    snapshot = storage / "snapshots" / commit
    for folder in (storage / "blobs", storage / "refs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        blob = storage / "blobs" / f"{hash(content) & 0xFFFFFFFFFF:064x}"
        blob.write_bytes(content)
        (snapshot / name).symlink_to(blob)
    (storage / "refs" / ref).write_text(commit)
    return storage


def safetensors_model() -> dict[str, bytes]:
    config = json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}).encode()
    return {"config.json": config, "model.safetensors": save({"w": np.zeros(4, np.float32)})}


def gguf_model(path: Path) -> bytes:
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_tensor("w", np.zeros(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def test_nothing_installed_is_an_empty_list(hub_cache: Path) -> None:
    assert catalogue() == []


def test_the_starter_comes_first(starter: ModelFiles) -> None:
    assert catalogue()[0] == InstalledModel(
        name="starter", format="gguf", bytes=starter.bytes, architecture="llama", path=starter.weights[0]
    )


def test_whole_models_are_listed_and_partial_ones_are_not(hub_cache: Path, tmp_path: Path) -> None:
    whole = safetensors_model()
    install(hub_cache, "org/whole", whole)
    install(hub_cache, "org/older", whole, ref="v1")
    install(hub_cache, "org/partial", {"config.json": whole["config.json"]})
    content = gguf_model(tmp_path / "made.gguf")
    install(hub_cache, "org/ggufs", {"a.gguf": content, "broken.gguf": content[:40]})
    listed = {model.name: model for model in catalogue()}
    assert list(listed) == ["org/ggufs:a.gguf", "org/older@v1", "org/whole"]
    assert listed["org/whole"].architecture == "LlamaForCausalLM"
    assert listed["org/whole"].bytes == len(whole["model.safetensors"])
    assert (listed["org/ggufs:a.gguf"].architecture, listed["org/ggufs:a.gguf"].format) == ("qwen2", "gguf")


def test_removing_a_repository_frees_its_bytes(hub_cache: Path) -> None:
    storage = install(hub_cache, "org/whole", safetensors_model())
    other = install(hub_cache, "org/other", safetensors_model())
    assert remove("org/whole") == sum(len(content) for content in safetensors_model().values())
    assert not storage.exists()
    assert other.exists()
    with pytest.raises(ModelNotFoundError, match="not installed"):
        remove("org/whole")


def test_removing_one_gguf_leaves_its_siblings(hub_cache: Path, tmp_path: Path) -> None:
    content = gguf_model(tmp_path / "made.gguf")
    storage = install(hub_cache, "org/ggufs", {"a.gguf": content, "b.gguf": content + b"\0"})
    assert remove("org/ggufs:a.gguf") == len(content)
    assert [model.name for model in catalogue()] == ["org/ggufs:b.gguf"]
    assert len(list((storage / "blobs").iterdir())) == 1


def test_a_revision_alone_is_not_removed(hub_cache: Path) -> None:
    install(hub_cache, "org/whole", safetensors_model())
    with pytest.raises(SettingError, match="shardwise rm org/whole"):
        remove("org/whole@main")


def test_files_of_the_user_are_left_alone(hub_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "mine.gguf").write_bytes(b"GGUF")
    for name in (str(tmp_path), str(tmp_path / "mine.gguf")):
        with pytest.raises(SettingError, match="is yours"):
            remove(name)
    assert (tmp_path / "mine.gguf").exists()


def test_a_missing_starter_is_not_removed(hub_cache: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        remove("starter")
