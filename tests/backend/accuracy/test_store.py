"""What was measured is found again by the same model on the same device, and by no other."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest

from backend.accuracy.report import ContextAccuracy, FormatAccuracy
from backend.accuracy.store import AccuracyStore, accuracy_key
from backend.library.files import ModelFiles
from tests.fakes.machines import cpu_machine, gpu, gpu_machine

FORMAT = FormatAccuracy(kv_format="int8", token_bytes=9, perplexity=math.inf, change=0.1, divergence=1e-3)
CONTEXTS = (ContextAccuracy(tokens=512, generated=3, formats=(FORMAT,)),)


@pytest.fixture
def files(tmp_path: Path) -> ModelFiles:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")
    return ModelFiles(name="m", format="safetensors", weights=(str(weights),), folder=str(tmp_path), bytes=7)


def test_what_was_written_is_read_and_nothing_else_lies_there(tmp_path: Path) -> None:
    store = AccuracyStore(tmp_path / "accuracy")
    assert store.read("key") is None
    store.write("key", CONTEXTS)
    assert store.read("key") == CONTEXTS
    assert store.read("other") is None
    assert [path.name for path in store.folder.iterdir()] == ["key"]


@pytest.mark.parametrize("content", [b"", b"\x93\x01\x02\x03", msgspec.msgpack.encode(CONTEXTS)[:-3]])
def test_a_broken_file_counts_as_none_and_is_replaced(tmp_path: Path, content: bytes) -> None:
    store = AccuracyStore(tmp_path)
    (tmp_path / "key").write_bytes(content)
    assert store.read("key") is None
    store.write("key", CONTEXTS)
    assert store.read("key") == CONTEXTS


def test_a_folder_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = AccuracyStore(tmp_path / "file" / "accuracy")
    store.write("key", CONTEXTS)
    assert store.read("key") is None


def test_the_key_changes_with_all_that_the_figures_depend_on(files: ModelFiles) -> None:
    machine = gpu_machine(gpu(0), gpu(1))
    key = accuracy_key(files, "bfloat16", "cuda:0", machine)
    assert accuracy_key(files, "bfloat16", "cuda:1", machine) == key  # an equal GPU
    others = {
        accuracy_key(files, "float16", "cuda:0", machine),
        accuracy_key(files, "bfloat16", "cpu", cpu_machine()),
        accuracy_key(files, "bfloat16", "cuda:0", machine, "int8"),
    }
    (Path(files.folder) / "config.json").write_text('{"rope_theta": 5}')
    others.add(accuracy_key(files, "bfloat16", "cuda:0", machine))
    Path(files.weights[0]).write_bytes(b"retrained")
    others.add(accuracy_key(files, "bfloat16", "cuda:0", machine))
    assert len(others - {key}) == 5
