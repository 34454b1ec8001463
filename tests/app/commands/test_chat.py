"""Plain chat: as a command in a pipe, and its conversation over a fake server."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from app.background import StartedServer, StartError
from app.client import SamplingChoice, ShardwiseClient
from app.commands import chat as command
from app.plain_chat import PlainChat
from tests.fakes.fake_server import FakeServer, serving


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with serving(FakeServer()) as running:
        yield running


class Talk:
    """A PlainChat with the fake, its streams in memory, its input a list of lines."""

    def __init__(self, fake: FakeServer, runner: asyncio.Runner) -> None:
        self.out, self.notes = io.StringIO(), io.StringIO()
        self.client = ShardwiseClient(fake.url)
        self.chat = PlainChat(runner, self.client, fake.model, "", SamplingChoice(seed=1), self.out, self.notes)

    def converse(self, *lines: str | type[BaseException]) -> None:
        pending = list(lines)

        def read(_prompt: str) -> str:
            line = pending.pop(0) if pending else EOFError
            if isinstance(line, str):
                return line
            raise line

        self.chat.converse(read)
        assert pending == []


@pytest.fixture
def talk(fake: FakeServer) -> Iterator[Talk]:
    with asyncio.Runner() as runner:
        made = Talk(fake, runner)
        yield made
        runner.run(made.client.aclose())


def contents(request: dict) -> list[str]:
    return [each["content"] for each in request["messages"]]


def test_a_conversation_remembers_and_its_commands_work(talk: Talk, fake: FakeServer) -> None:
    talk.converse("one\\", "more", "/regenerate", "two", "/system Be brief.", "three", "/new", "four", "/help", "/quit")
    answer = "Hello from the fake."
    assert [contents(each) for each in fake.requests] == [
        ["one\nmore"],
        ["one\nmore"],
        ["one\nmore", answer, "two"],
        ["Be brief.", "three"],
        ["Be brief.", "four"],
    ]
    assert talk.out.getvalue() == f"{answer}\n" * 5
    assert "/regenerate" in talk.notes.getvalue()
    assert fake.requests[0]["seed"] == 1


def test_an_error_is_told_and_the_conversation_goes_on(talk: Talk, fake: FakeServer) -> None:
    fake.refuse = "Too long\x1b[1m"

    def read_then_allow(_prompt: str) -> str:
        if fake.requests:
            fake.refuse = None
        if len(fake.requests) == 2:
            raise EOFError
        return "hi"

    talk.chat.converse(read_then_allow)
    assert "Too long\n" in talk.notes.getvalue()
    assert contents(fake.requests[1]) == ["hi"]


def test_two_interrupts_in_a_row_leave_and_one_does_not(talk: Talk, fake: FakeServer) -> None:
    talk.converse(KeyboardInterrupt, "hi", KeyboardInterrupt, KeyboardInterrupt)
    assert len(fake.requests) == 1
    assert "once more" in talk.notes.getvalue()


def test_unknown_commands_and_nothing_to_regenerate(talk: Talk, fake: FakeServer) -> None:
    talk.converse("/dance", "/regenerate", "   ")
    assert "no command /dance" in talk.notes.getvalue()
    assert "nothing to answer" in talk.notes.getvalue()
    assert fake.requests == []


def environment(folder: Path) -> dict[str, str]:
    """Folders of its own, so that no real server and no real setting is found."""
    return os.environ | {
        "XDG_RUNTIME_DIR": str(folder),
        "XDG_CONFIG_HOME": str(folder),
        "PYTHONPATH": str(Path(command.__file__).parents[2]),
    }


CHAT = (sys.executable, "-c", "import typer; from app.commands.chat import chat; typer.run(chat)")


def test_a_pipe_gets_the_answer_alone_and_status_0(fake: FakeServer, tmp_path: Path) -> None:
    done = subprocess.run(
        [*CHAT, "--url", fake.url, "--temperature", "0", "--", fake.model, "Translate:"],
        input="hi\n",
        capture_output=True,
        text=True,
        env=environment(tmp_path),
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "Hello from the fake.\n"), done.stderr
    assert contents(fake.requests[0]) == ["Translate:\n\nhi"]
    assert fake.requests[0]["temperature"] == 0


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Programs that are started do not ignore SIGINT, also where the tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_an_interrupt_stops_a_pipes_answer(fake: FakeServer, tmp_path: Path) -> None:
    fake.hold_after = 2
    with subprocess.Popen(
        [*CHAT, "--url", fake.url, "--", fake.model, "hi"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(tmp_path),
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        assert process.stdout.read(10) == b"Hello from"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == command.INTERRUPTED
    assert fake.cancelled.wait(5)


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    application = typer.Typer()
    application.command()(command.chat)

    def run(*arguments: str, text: str = ""):
        return CliRunner().invoke(application, list(arguments), input=text, catch_exceptions=True)

    return run


def test_without_a_server_one_is_started_for_the_chat_and_ended(
    invoke: Callable, fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.stages = [{"stage": "load", "seconds": 1.5, "done": 1, "total": 1, "finished": True}]
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    monkeypatch.setattr(command, "start_server", lambda model: StartedServer(child, fake.url, model, tmp_path / "log"))
    monkeypatch.setattr(
        "backend.library.resolve.pull",
        lambda model, progress: [progress(n, 10_000_000) for n in (5_000_000, 10_000_000)],
    )
    done = invoke("fake/model", text="hi")
    assert (done.exit_code, done.stdout) == (0, "Hello from the fake.\n")
    assert "Downloading: 50% of 10 MB" in done.stderr
    assert "load: 1.5 s" in done.stderr
    assert "for this chat" in done.stderr
    assert child.poll() is not None


def test_a_server_that_dies_while_starting_shows_the_end_of_its_log(
    invoke: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    log.write_text("Out of memory on cpu\nweights need 5 GB\x1b[1m\n")
    child = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    child.wait()
    monkeypatch.setattr(command, "start_server", lambda model: StartedServer(child, "http://127.0.0.1:9", model, log))
    monkeypatch.setattr("backend.library.resolve.pull", lambda model, progress: None)
    done = invoke("fake/model", text="hi")
    assert isinstance(done.exception, StartError)
    assert (done.exception.what, done.exception.why) == ("Out of memory on cpu", "weights need 5 GB")


@pytest.mark.parametrize(("arguments", "text"), [(("m", "--temperature", "9"), "hi"), (("m",), "  \n")])
def test_what_cannot_be_asked_is_status_2(invoke: Callable, arguments: tuple[str, ...], text: str) -> None:
    done = invoke(*arguments, text=text)
    assert getattr(done.exception, "exit_status", None) == 2
