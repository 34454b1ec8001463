"""The tensor server as a process: real models' stages load from what it gave, and it ends with its owner."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from backend.layer_span import LayerSpan
from backend.library.files import ModelFiles
from backend.surgery.load import load_model
from pipeline_ext.tensor_fetch import obtain
from pipeline_ext.tensor_server_process import TensorServerError, TensorServerProcess
from tests.fakes.peers import SECRET, made_identities
from tests.fakes.tiny_models import make_checkpoint


class Order:
    def __init__(self, files: ModelFiles) -> None:
        self.settings = self
        self.files = files


def loaded(files: ModelFiles, span: LayerSpan) -> dict[str, torch.Tensor]:
    served = load_model(
        files, dtype=torch.float32, device=torch.device("cpu"), on_progress=lambda done, total: None, span=span
    )
    return {name: value.clone() for name, value in served.module.state_dict().items()}


def fetched_stages(files: ModelFiles, layers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head, peer = made_identities(tmp_path / "identities")
    cut = layers // 2
    spans = [LayerSpan(0, cut, layers, 0, cut), LayerSpan(cut, layers, layers, cut, layers)]
    expected = [loaded(files, span) for span in spans]
    server = TensorServerProcess(files, "127.0.0.1", head, SECRET)
    try:
        offer = server.offer()
        monkeypatch.setenv("SHARDWISE_CACHE_HOME", str(tmp_path / "cache"))
        order: Any = Order(files)
        for count, (span, weights) in enumerate(zip(spans, expected, strict=True)):
            here = obtain(order, span, offer, SECRET, lambda *told: None, peer)
            if count == 0:
                used = sum(os.stat(path).st_blocks * 512 for path in here.weights)
                assert used < sum(os.stat(path).st_size for path in here.weights)
            found = loaded(here, span)
            assert found.keys() == weights.keys()
            assert all(torch.equal(found[name], weights[name]) for name in weights)
    finally:
        server.close()


def test_stages_of_a_safetensors_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = make_checkpoint("llama", tmp_path / "model")
    fetched_stages(files, 3, tmp_path, monkeypatch)


def test_stages_of_the_starter(starter: ModelFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched_stages(starter, 30, tmp_path, monkeypatch)


def test_a_server_that_died_is_started_again_and_ends_with_its_owner(starter: ModelFiles, tmp_path: Path) -> None:
    server = TensorServerProcess(starter, "127.0.0.1", made_identities(tmp_path)[0], SECRET)
    first = server.offer()
    assert server.offer() is first
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    while server._process is not None and server._process.poll() is None:
        time.sleep(0.01)
    assert server.offer() != first
    process = server._process
    server.close()
    assert process is not None
    assert process.returncode == 0


def test_a_broken_model_is_named(starter: ModelFiles, tmp_path: Path) -> None:
    from msgspec.structs import replace

    broken = tmp_path / "model.gguf"
    broken.write_bytes(b"GGUF")
    server = TensorServerProcess(
        replace(starter, weights=(str(broken),)), "127.0.0.1", made_identities(tmp_path)[0], SECRET
    )
    with pytest.raises(TensorServerError, match="is broken"):
        server.offer()
