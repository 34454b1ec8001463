"""Servers in the background: found by their files, started apart from us, followed, stopped."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app import background
from app.background import StartedServer, StartError
from app.client import ServerUnreachableError, ShardwiseClient
from app.runtime_file import announced
from tests.fakes.fake_server import FakeServer, serving

SLEEPER = (sys.executable, "-c", "import time; time.sleep(60)")


@pytest.fixture(autouse=True)
def _folders_of_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with serving(FakeServer()) as running:
        yield running


@pytest.fixture
def process() -> Iterator[subprocess.Popen]:
    with subprocess.Popen([*SLEEPER, "serve"]) as running:
        yield running
        running.kill()


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen]:
    with subprocess.Popen(SLEEPER) as running:
        yield running
        running.kill()


def record(number: int, body: dict | str) -> None:
    background.runtime_folder().mkdir(parents=True, exist_ok=True)
    text = body if isinstance(body, str) else json.dumps(body)
    (background.runtime_folder() / f"server-{number}.json").write_text(text)


async def test_only_living_servers_that_answer_are_found(fake: FakeServer, process: subprocess.Popen) -> None:
    record(1, {"pid": process.pid, "url": fake.url, "model": "fake/model"})
    record(2, {"pid": os.getpid(), "url": fake.url, "model": "not a server process"})
    record(3, "{broken")
    record(4, {"pid": 2**22 + 1, "url": fake.url, "model": "dead"})
    record(5, {"pid": process.pid, "url": "http://127.0.0.1:9", "model": "silent"})
    assert {each.model for each in background.running_servers()} == {"fake/model", "silent"}
    found = await background.find_server()
    assert found is not None
    assert found.model == "fake/model"
    assert await background.find_server("other") is None
    fake.status = "failed"
    assert await background.find_server("fake/model") is None


def test_the_files_that_servers_write_are_the_files_that_are_read() -> None:
    with announced(8123, "http://127.0.0.1:8123", "m"):
        (path,) = background.runtime_folder().glob("server-*.json")
        read = background._read_record(path)
    assert read == background.ServerRecord(os.getpid(), "http://127.0.0.1:8123", "m")
    assert not path.exists()


async def test_a_start_is_followed_until_ready(fake: FakeServer, process: subprocess.Popen, tmp_path: Path) -> None:
    fake.status = "starting"
    client = ShardwiseClient(fake.url)
    seen = []
    async for health in background.follow_start(client, StartedServer(process, fake.url, "m", tmp_path / "log")):
        seen.append(health.status)
        fake.status = "ready"
    await client.aclose()
    assert seen == ["starting", "ready"]


async def test_a_failed_engine_ends_the_start_with_its_words(fake: FakeServer) -> None:
    fake.status, fake.error = "failed", "What\nwhy\nhint"
    client = ShardwiseClient(fake.url)
    with pytest.raises(StartError) as error:
        [health async for health in background.follow_start(client)]
    await client.aclose()
    assert (error.value.what, error.value.why, error.value.hint) == ("What", "why", "hint")


async def test_nobody_to_wait_for_is_an_error() -> None:
    client = ShardwiseClient("http://127.0.0.1:9")
    with pytest.raises(ServerUnreachableError):
        [health async for health in background.follow_start(client)]
    await client.aclose()


async def test_a_server_is_started_apart_from_us_with_a_private_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__main__.py").write_text("print('a package of the user')")
    started = background.start_server("/nowhere/at/all.gguf")
    try:
        assert os.getsid(started.process.pid) != os.getsid(0)
        assert stat.S_IMODE(started.log.stat().st_mode) == 0o600
        client = ShardwiseClient(started.url)
        with pytest.raises(StartError) as error:
            [health async for health in background.follow_start(client, started)]
        await client.aclose()
    finally:
        started.process.kill()
        started.process.wait()
    assert "/nowhere/at/all.gguf" in f"{error.value.what}\n{error.value.why}"
    assert "Traceback" not in str(error.value)
    assert str(started.log) in error.value.hint


async def test_a_server_is_stopped_and_another_process_left_alone(
    process: subprocess.Popen, stranger: subprocess.Popen
) -> None:
    assert await background.stop_server(stranger.pid)
    assert stranger.poll() is None
    assert await background.stop_server(process.pid, 5)
    assert process.wait(5) == -15


def test_the_last_words_of_a_server_are_told_without_its_timed_lines(process: subprocess.Popen, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("2026-01-02T03:04:05Z [error] engine failed\nOut of memory\nGPU 0 has 3 GB\nUse another model\n")
    error = background.start_failure(StartedServer(process, "http://127.0.0.1:9", "m", log))
    assert (error.what, error.why) == ("Out of memory", "GPU 0 has 3 GB\nUse another model")
    log.write_text("2026-01-02T03:04:05Z [info] started\n")
    assert "status" in background.start_failure(StartedServer(process, "http://127.0.0.1:9", "m", log)).what
