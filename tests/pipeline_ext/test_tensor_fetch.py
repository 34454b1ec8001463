"""A stage's tensors over TLS: whole, resumed, with flipped bits, by liars and strangers, by two at once."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from backend.errors import ShardwiseError
from backend.layer_span import LayerSpan
from backend.library import atomic
from backend.library.files import ModelFiles
from backend.library.header import TensorEntry
from pipeline_ext import tensor_fetch, tensor_offer
from pipeline_ext.identity import Identity
from pipeline_ext.tensor_fetch import obtain
from pipeline_ext.tensor_messages import Ask
from pipeline_ext.tensor_offer import encode_offer, fetched_home, tensors_of
from pipeline_ext.tensor_server import TensorServer
from tests.fakes.peers import SECRET, made_identities, served_tensors

FIRST, SECOND = LayerSpan(0, 1, 2, 0, 1), LayerSpan(1, 2, 2, 1, 2)
LAYER_BYTES = 20 << 20


class Order:
    """Of a Load, what `obtain` reads."""

    def __init__(self, files: ModelFiles) -> None:
        self.settings = self
        self.files = files


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    """Two layers of 20 MiB, each in a file of its own, with something both need."""
    folder = tmp_path_factory.mktemp("model")
    rng = np.random.default_rng(1)
    for number in range(2):
        layer = rng.integers(0, 256, LAYER_BYTES, dtype=np.uint8)
        save_file({f"layers.{number}.weight": layer, f"norm.{number}": np.ones(3, np.float32)},
                  folder / f"model-{number}.safetensors")  # fmt: skip
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "secrets.txt").write_text("not offered")
    weights = tuple(str(path) for path in sorted(folder.glob("*.safetensors")))
    return ModelFiles(name="org/two", format="safetensors", weights=weights, folder=str(folder), bytes=1)


def reads(files: ModelFiles, span: LayerSpan) -> Mapping[str, tuple[TensorEntry, ...]]:
    """A stage reads its layer and all norms."""
    names = {f"layers.{layer}.weight" for layer in range(span.first, span.stop)}
    return {
        path: tuple(one for one in tensors_of(Path(path), files.format) if one.name in names or "norm" in one.name)
        for path in files.weights
    }


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Identity, Identity]:
    return made_identities(tmp_path_factory.mktemp("identities"))


@pytest.fixture(autouse=True)
def at_the_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDWISE_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tensor_fetch, "_FIRST_PAUSE", 0.001)


class Counting(TensorServer):
    """Counts the bytes that it gave out."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.given = 0

    def _answer(self, line: socket.socket, frame: bytes) -> None:
        if self._may(Ask(*(ask := msgspec.msgpack.decode(frame))[1:])):
            self.given += ask[3]
        super()._answer(line, frame)


Fetch = Callable[..., ModelFiles]


@pytest.fixture
def fetch(model: ModelFiles, identities: tuple[Identity, Identity]) -> Fetch:
    def run(server: TensorServer, span: LayerSpan = FIRST, progress: Any = None, **changes: Any) -> ModelFiles:
        options = {"secret": SECRET, "identity": identities[1], "tensors": reads} | changes
        order: Any = Order(model)
        return obtain(order, span, encode_offer(server.offer), on_progress=progress or (lambda *told: None), **options)

    return run


@pytest.fixture
def server(model: ModelFiles, identities: tuple[Identity, Identity]) -> Iterator[Counting]:
    with served_tensors(model, identities[0], Counting) as started:
        assert isinstance(started, Counting)
        yield started


def assert_whole(files: ModelFiles, model: ModelFiles, layer: int) -> None:
    for number, (here, there) in enumerate(zip(files.weights, model.weights, strict=True)):
        assert Path(here).stat().st_size == Path(there).stat().st_size
        mine, theirs = load_file(here), load_file(there)
        for name in theirs:
            if number == layer or "norm" in name:
                assert np.array_equal(mine[name], theirs[name]), name
            else:
                assert not mine[name].any(), f"{name} was fetched"


def test_where_the_worker_runs_beside_the_engine_its_files_are_the_engines(model: ModelFiles) -> None:
    order: Any = Order(model)
    assert obtain(order, FIRST, b"", b"", lambda *told: None) is model


def test_a_stage_gets_its_tensors_and_no_others(server: Counting, model: ModelFiles, fetch: Fetch) -> None:
    told: list[tuple[str, int, int]] = []
    files = fetch(server, progress=lambda *step: told.append(step))
    assert_whole(files, model, 0)
    assert LAYER_BYTES < server.given < LAYER_BYTES + 10_000
    assert told[-1][1] == told[-1][2] > LAYER_BYTES
    assert (Path(files.folder) / "config.json").read_text() == '{"model_type": "llama"}'
    # Holes take no room.
    assert os.stat(files.weights[1]).st_blocks * 512 < 1 << 20
    assert not (Path(files.weights[0]).parent / "config.json").exists()


def test_what_is_here_is_not_fetched_again_and_another_span_gets_the_rest(
    server: Counting, model: ModelFiles, fetch: Fetch
) -> None:
    fetch(server)
    before = server.given
    fetch(server)
    assert server.given == before
    files = fetch(server, SECOND)
    assert LAYER_BYTES <= server.given - before < LAYER_BYTES + 10_000
    for here, there in zip(files.weights, model.weights, strict=True):
        assert Path(here).read_bytes() == Path(there).read_bytes()


def test_two_workers_fetch_once(server: Counting, model: ModelFiles, fetch: Fetch) -> None:
    found: list[ModelFiles] = []
    workers = [threading.Thread(target=lambda: found.append(fetch(server))) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 2
    assert_whole(found[0], model, 0)
    assert server.given < LAYER_BYTES + 10_000


PROGRAM = """
import sys
from pathlib import Path
from pipeline_ext.identity import Identity
from pipeline_ext.tensor_fetch import obtain
from tests.pipeline_ext.test_tensor_fetch import FIRST, Order, reads, SECRET
def told(stage, done, total):
    if done > 12 << 20:
        print("far enough", flush=True)
        sys.stdin.read()
obtain(Order(None), FIRST, bytes.fromhex(sys.argv[1]), SECRET, told, Identity(Path(sys.argv[2]), ""), reads)
"""


def test_a_fetch_that_was_killed_goes_on_where_it_was(
    server: Counting, model: ModelFiles, fetch: Fetch, identities: tuple[Identity, Identity]
) -> None:
    command = [sys.executable, "-c", PROGRAM, encode_offer(server.offer).hex(), str(identities[1].folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"far enough\n"
        process.send_signal(signal.SIGKILL)
    before = server.given
    assert_whole(fetch(server), model, 0)
    # Two ranges of 8 MiB had been checked.
    assert server.given - before < 5 << 20


def test_a_file_that_was_removed_is_fetched_again(server: Counting, model: ModelFiles, fetch: Fetch) -> None:
    os.unlink(fetch(server).weights[0])
    assert_whole(fetch(server), model, 0)


class Flipping(Counting):
    """Sends wrong bits for the first layer, a number of times; the hash is the true bytes'."""

    times = 1

    def _answer(self, line: socket.socket, frame: bytes) -> None:
        ask = msgspec.msgpack.decode(frame)
        if ask[3] > 1 << 20 and self.times:
            self.times -= 1
            super()._answer(_FlippedLine(line), frame)  # pyright: ignore[reportArgumentType]
        else:
            super()._answer(line, frame)


class _FlippedLine:
    def __init__(self, line: socket.socket) -> None:
        self._line = line

    def sendall(self, data: bytes) -> None:
        self._line.sendall(data[:-1] + bytes([data[-1] ^ 1]) if len(data) > 1 << 20 else data)


class Always(Flipping):
    times = 10_000


class Short(Counting):
    """Answers with one byte less than was asked for."""

    def _answer(self, line: socket.socket, frame: bytes) -> None:
        kind, file, start, length = msgspec.msgpack.decode(frame)
        super()._answer(line, msgspec.msgpack.encode((kind, file, start, max(1, length - 1))))


def test_flipped_bits_are_fetched_again(model: ModelFiles, fetch: Fetch, identities: tuple[Identity, Identity]) -> None:
    with served_tensors(model, identities[0], Flipping) as server:
        assert_whole(fetch(server), model, 0)


@pytest.mark.parametrize("kind", [Always, Short])
def test_a_server_that_lies_each_time_is_refused_by_name(
    kind: type[TensorServer], model: ModelFiles, fetch: Fetch, identities: tuple[Identity, Identity]
) -> None:
    with served_tensors(model, identities[0], kind) as server, pytest.raises(ShardwiseError) as refused:
        fetch(server)
    assert "3 times from 127.0.0.1:" in refused.value.why
    assert refused.value.what == "The tensors of org/two cannot be fetched"


def test_a_config_that_is_not_the_offered_one_is_refused(model: ModelFiles, server: Counting, fetch: Fetch) -> None:
    texts = server.offer.texts
    other = msgspec.structs.replace(texts[0], sha256=bytes(32))
    server.offer = msgspec.structs.replace(server.offer, texts=(other, *texts[1:]))
    with pytest.raises(ShardwiseError, match=r"config\.json of org/two is not what was offered"):
        fetch(server)


def test_who_has_another_secret_gets_nothing(server: Counting, fetch: Fetch) -> None:
    with pytest.raises(ShardwiseError, match="The server refuses: not for this engine"):
        fetch(server, secret=b"another engine's")
    assert server.given == 0


def test_who_has_no_certificate_of_the_cluster_gets_nothing(server: Counting, fetch: Fetch, tmp_path: Path) -> None:
    stranger = made_identities(tmp_path / "elsewhere")[1]
    with pytest.raises(ShardwiseError, match="is not who it should be"):
        fetch(server, identity=stranger)
    assert server.given == 0


def test_a_server_that_has_gone_is_given_up_on(
    model: ModelFiles, fetch: Fetch, identities: tuple[Identity, Identity]
) -> None:
    with served_tensors(model, identities[0]) as server:
        pass
    with pytest.raises(ShardwiseError, match="Connection refused"):
        fetch(server)


def test_without_room_nothing_is_begun(server: Counting, fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch(server, tensors=lambda files, span: {})
    before = server.given
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda path: os.statvfs_result([0] * 10) and _Usage())
    with pytest.raises(ShardwiseError, match="There is no room for this stage of org/two"):
        fetch(server)
    assert server.given == before


class _Usage:
    free = 1 << 20


@pytest.mark.parametrize(
    "ask", [Ask(0, -1, 5), Ask(0, 0, 0), Ask(0, 0, (8 << 20) + 1), Ask(0, 1 << 40, 5), Ask(4, 0, 1), Ask(-1, 0, 1)]
)
def test_only_ranges_of_offered_files_are_answered(
    ask: Ask, server: Counting, identities: tuple[Identity, Identity]
) -> None:
    from pipeline_ext.tensor_line import DeniedError, TensorLine

    line = TensorLine(server.offer.address, "", identities[1], SECRET)
    try:
        with pytest.raises(DeniedError, match="no such range"):
            list(line.fetch([ask]))
    finally:
        line.close()


def test_files_with_holes_are_never_offered(server: Counting, fetch: Fetch) -> None:
    from pipeline_ext.tensor_offer import make_offer

    files = fetch(server)
    assert Path(files.weights[0]).is_relative_to(fetched_home())
    with pytest.raises(ShardwiseError, match="was fetched in part"):
        make_offer(files)


@pytest.fixture
def at_home(model: ModelFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelFiles:
    """The peer has the model itself, under the name that is offered."""
    folder = tmp_path / "home" / "two"
    shutil.copytree(model.folder, folder)
    own = msgspec.structs.replace(
        model, folder=str(folder), weights=tuple(str(folder / Path(path).name) for path in model.weights)
    )
    monkeypatch.setattr(tensor_offer, "resolve", lambda name: own)
    return own


def test_a_peer_that_has_the_model_reads_its_own(server: Counting, fetch: Fetch, at_home: ModelFiles) -> None:
    assert fetch(server) == at_home
    assert server.given == 0


def test_a_peer_with_another_config_reads_its_own_weights_by_the_engines_config(
    server: Counting, fetch: Fetch, at_home: ModelFiles
) -> None:
    (Path(at_home.folder) / "config.json").write_text('{"model_type": "llama", "rope_theta": 7}')
    found = fetch(server)
    assert found.weights == at_home.weights
    assert (Path(found.folder) / "config.json").read_text() == '{"model_type": "llama"}'
    assert server.given < 1000


def test_a_peer_with_other_weights_of_the_name_fetches(
    server: Counting, fetch: Fetch, at_home: ModelFiles, model: ModelFiles
) -> None:
    with open(at_home.weights[0], "r+b") as file:
        file.seek(-4096, os.SEEK_END)
        file.write(bytes(4096))
    assert_whole(fetch(server), model, 0)
