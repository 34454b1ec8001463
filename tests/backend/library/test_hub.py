"""Pulling from a local server that answers as the hub: what is fetched, resumed, refused and explained."""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from backend.errors import BrokenModelError, DownloadError, ModelAccessError, ModelNotFoundError, UnsupportedModelError
from backend.library import transfer
from backend.library.folders import INDEX
from backend.library.hub import pull_repository, storage_folder
from backend.library.names import HubName
from backend.library.resolve import pull, resolve
from tests.fakes.hub import COMMIT, FakeHub, FakeRepository

NAME = "maker/tiny"
CONFIG = json.dumps({"model_type": "llama"}).encode()


def safetensors(seed: int, size: int = 3_000_000) -> bytes:
    header = json.dumps({f"w{seed}": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + random.Random(seed).randbytes(size)


def sharded() -> FakeRepository:
    shards = {f"model-0000{number}-of-00002.safetensors": safetensors(number) for number in (1, 2)}
    index = {"weight_map": {f"w{number}": f"model-0000{number}-of-00002.safetensors" for number in (1, 2)}}
    small = {"config.json": CONFIG, "tokenizer.json": b"{}", INDEX: json.dumps(index).encode()}
    unwanted = {"pytorch_model.bin": b"pickle", "README.md": b"read", "onnx/model.onnx": b"x", "vocab.json": b"{}"}
    return FakeRepository(files=small | shards | unwanted, large=frozenset(shards))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with FakeHub() as fake:
        monkeypatch.setattr(constants, "ENDPOINT", fake.url)
        template = fake.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(transfer.time, "sleep", lambda seconds: None)
        yield fake


def test_only_what_is_needed_is_fetched_and_counted(hub: FakeHub) -> None:
    repository = hub.repositories[NAME] = sharded()
    seen: list[tuple[int, int]] = []
    files = pull(NAME, lambda done, total: seen.append((done, total)))
    fetched = {name for name, _, _ in hub.sent}
    assert fetched == {"config.json", "tokenizer.json", INDEX, *repository.large}
    total = sum(len(repository.files[name]) for name in fetched)
    assert {claimed for _, claimed in seen} == {total}
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert [Path(path).read_bytes() for path in files.weights] == [
        repository.files[n] for n in sorted(repository.large)
    ]
    assert (files.name, files.format, resolve(NAME)) == (NAME, "safetensors", files)


def test_a_second_pull_sends_no_file_again(hub: FakeHub) -> None:
    hub.repositories[NAME] = sharded()
    pull(NAME, lambda done, total: None)
    hub.sent.clear()
    seen: list[tuple[int, int]] = []
    pull(NAME, lambda done, total: seen.append((done, total)))
    assert hub.sent == []
    assert seen[-1][0] == seen[-1][1] > 6_000_000


def test_cut_connections_are_resumed_at_the_byte(hub: FakeHub) -> None:
    repository = hub.repositories[NAME] = sharded()
    hub.cut_after, hub.cuts = 700_000, 6
    files = pull(NAME, lambda done, total: None)
    assert [Path(path).read_bytes() for path in files.weights] == [
        repository.files[n] for n in sorted(repository.large)
    ]
    for shard in repository.large:
        assert sum(count for name, _, count in hub.sent if name == shard) == len(repository.files[shard])
    assert any(asked and asked != "bytes=0-" for _, asked, _ in hub.sent)


def test_a_later_pull_goes_on_where_a_stopped_one_ended(hub: FakeHub) -> None:
    content = safetensors(3)
    repository = FakeRepository({"config.json": CONFIG, "tokenizer.json": b"{}", "model.safetensors": content})
    repository.large = frozenset({"model.safetensors"})
    hub.repositories[NAME] = repository

    class StoppedError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done > 1_500_000:
            raise StoppedError

    with pytest.raises(StoppedError):
        pull(NAME, stop)
    with pytest.raises(ModelNotFoundError, match="shardwise pull maker/tiny"):
        resolve(NAME)
    kept = next((storage_folder(NAME) / "blobs").glob("*.incomplete")).stat().st_size
    assert kept > 0
    hub.sent.clear()
    files = pull(NAME, lambda done, total: None)
    assert Path(files.weights[0]).read_bytes() == content
    assert [sent for sent in hub.sent if sent[0] == "model.safetensors"] == [
        ("model.safetensors", f"bytes={kept}-", len(content) - kept)
    ]


def test_a_server_that_ignores_ranges_gives_the_right_bytes_and_count(hub: FakeHub) -> None:
    repository = hub.repositories[NAME] = sharded()
    hub.cut_after, hub.cuts, hub.ignore_range = 1_200_000, 2, True
    seen: list[int] = []
    files = pull(NAME, lambda done, total: seen.append(done))
    assert [Path(path).read_bytes() for path in files.weights] == [
        repository.files[n] for n in sorted(repository.large)
    ]
    assert max(seen) == seen[-1]


def test_a_dead_line_ends_in_an_explanation(hub: FakeHub) -> None:
    hub.repositories[NAME] = sharded()
    hub.cut_after, hub.cuts = 0, 1_000
    with pytest.raises(DownloadError, match="what has arrived is kept"):
        pull(NAME, lambda done, total: None)


def test_damaged_bytes_are_refused_and_not_kept(hub: FakeHub) -> None:
    repository = hub.repositories[NAME] = sharded()
    repository.damaged = repository.large
    with pytest.raises(DownloadError, match="arrived damaged"):
        pull(NAME, lambda done, total: None)
    repository.damaged = frozenset()
    assert pull(NAME, lambda done, total: None).bytes > 6_000_000


def test_gated_private_unknown_and_lost_revisions_are_explained(hub: FakeHub) -> None:
    hub.repositories[NAME] = sharded()
    hub.repositories["maker/gated"] = FakeRepository({"config.json": CONFIG, "model.safetensors": b""}, gated=True)
    hub.repositories["maker/private"] = FakeRepository({"config.json": CONFIG}, token="secret")
    nothing = lambda done, total: None  # noqa: E731
    with pytest.raises(ModelAccessError, match=f"Ask at {hub.url}/maker/gated"):
        pull("maker/gated", nothing)
    for unknown in ("maker/private", "maker/nowhere"):
        with pytest.raises(ModelNotFoundError, match="or it is private"):
            pull(unknown, nothing)
    with pytest.raises(ModelNotFoundError, match="no revision 'v9'"):
        pull(f"{NAME}@v9", nothing)


def test_revisions_stand_beside_each_other(hub: FakeHub) -> None:
    repository = hub.repositories[NAME] = sharded()
    repository.branches = ("main", "v2")
    pull(f"hf://{NAME}@v2", lambda done, total: None)
    assert resolve(f"{NAME}@v2").weights == resolve(f"{NAME}@{COMMIT}").weights
    with pytest.raises(ModelNotFoundError):
        resolve(NAME)


def test_an_unfinished_newer_commit_leaves_the_older_in_use(hub: FakeHub) -> None:
    repository = hub.repositories[NAME] = sharded()
    before = pull(NAME, lambda done, total: None)
    shard = "model-00002-of-00002.safetensors"
    repository.files[shard] = safetensors(9)
    repository.commit = "f" * 40
    hub.cut_after, hub.cuts = 0, 1_000
    with pytest.raises(DownloadError):
        pull(NAME, lambda done, total: None)
    assert resolve(NAME) == before
    hub.cuts = 0
    after = pull(NAME, lambda done, total: None)
    assert Path(after.weights[1]).read_bytes() == repository.files[shard]


def test_repositories_without_readable_weights_are_refused_by_name(hub: FakeHub) -> None:
    hub.repositories["maker/pickles"] = FakeRepository({"config.json": CONFIG, "pytorch_model.bin": b"x"})
    hub.repositories["maker/ggufs"] = FakeRepository({"a.Q4_K.gguf": b"GGUF", "b.Q8_0.gguf": b"GGUF"})
    hub.repositories["maker/hole"] = sharded()
    del hub.repositories["maker/hole"].files["model-00002-of-00002.safetensors"]
    strange = json.dumps({"model_type": "unheard_of"}).encode()
    hub.repositories["maker/strange"] = FakeRepository({"config.json": strange, "model.safetensors": safetensors(1)})
    with pytest.raises(UnsupportedModelError, match="'unheard_of'"):
        pull("maker/strange", lambda done, total: None)
    with pytest.raises(UnsupportedModelError, match=r"pytorch_model\.bin"):
        pull("maker/pickles", lambda done, total: None)
    with pytest.raises(ModelNotFoundError, match=r"Name one: maker/ggufs:a\.Q4_K\.gguf"):
        pull("maker/ggufs", lambda done, total: None)
    with pytest.raises(BrokenModelError, match="not complete on the hub"):
        pull("maker/hole", lambda done, total: None)
    assert not [name for name, _, _ in hub.sent if name.endswith((".bin", ".gguf", ".safetensors"))]


def test_one_gguf_file_of_a_repository_is_fetched_alone(hub: FakeHub) -> None:
    files = {"a.gguf": b"GGUF" + bytes(100), "b.gguf": b"GGUF" + bytes(200)}
    hub.repositories["maker/ggufs"] = FakeRepository(files, large=frozenset(files))
    place = pull_repository(HubName("maker/ggufs", file="b.gguf"), lambda done, total: None)
    assert place.read_bytes() == files["b.gguf"]
    assert {name for name, _, _ in hub.sent} == {"b.gguf"}


def test_offline_serves_what_is_there_and_explains_the_rest(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories[NAME] = sharded()
    files = pull(NAME, lambda done, total: None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert pull(NAME, lambda done, total: None) == files
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
        pull("maker/other", lambda done, total: None)


def test_an_unreachable_hub_is_explained(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match=r"connection to http://127.0.0.1:9 failed"):
        pull(NAME, lambda done, total: None)


def test_a_full_disk_is_explained_before_the_download(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories[NAME] = sharded()
    usage = os.statvfs(".")
    monkeypatch.setattr(
        "shutil.disk_usage", lambda path: type("Usage", (), {"free": 1_000_000, "total": usage.f_blocks})
    )
    with pytest.raises(DownloadError, match=r"0\.02 GB more; the disk .* has 0\.00 GB free"):
        pull(NAME, lambda done, total: None)
    assert not [name for name, _, _ in hub.sent if name.endswith(".safetensors")]


def test_the_environment_chooses_hub_cache_and_token(tmp_path: Path) -> None:
    with FakeHub() as fake:
        fake.repositories[NAME] = sharded()
        fake.repositories[NAME].token = "hf_secret"
        environment = os.environ | {"HF_ENDPOINT": fake.url, "HF_HOME": str(tmp_path), "HF_TOKEN": "hf_secret"}
        program = f"""
from backend.library.resolve import pull
import sys
files = pull({NAME!r}, lambda done, total: None)
print(files.folder, 'torch' in sys.modules, 'transformers' in sys.modules)
"""
        child = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=True
        )
    snapshot = tmp_path / "hub" / "models--maker--tiny" / "snapshots" / COMMIT
    assert child.stdout.split() == [str(snapshot), "False", "False"]
