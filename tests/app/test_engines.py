"""Which engines stand behind a model: copies here and on peers, each machine used once before this one twice."""

from __future__ import annotations

import pytest

from app import engines
from app.engines import main_engine
from app.settings import load_settings
from backend.engine_settings import EngineSettings
from backend.errors import SettingError
from backend.library.files import ModelFiles
from backend.replicated_engine import ReplicatedEngine
from tests.fakes.engine_client import FakeEngine
from tests.fakes.machines import cpu_machine

FILES = ModelFiles(name="m", format="safetensors", weights=(), folder="/m", bytes=1)


def made(monkeypatch: pytest.MonkeyPatch, replicas: str, peers: tuple[str, ...]) -> list[EngineSettings]:
    """The settings of the engines, in order, on a machine of 8 cores."""
    monkeypatch.setattr(engines, "read_machine", lambda: cpu_machine(cores=8))
    found: list[EngineSettings] = []

    def engine(settings: EngineSettings, name: str) -> FakeEngine:
        found.append(settings)
        return FakeEngine()

    settings = load_settings(replicas=replicas)
    one = main_engine(EngineSettings(files=FILES, device="cpu", peers="/hub.sock"), settings, engine, peers)
    assert isinstance(one, ReplicatedEngine) is (len(found) > 1)
    return found


def test_a_second_copy_goes_to_a_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = made(monkeypatch, "2", ("ab12", "cd34"))
    assert (here.peers, here.machines) == ("", ())
    assert (there.peers, there.machines) == ("/hub.sock", ("ab12",))


def test_more_copies_than_machines_share_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = made(monkeypatch, "3", ("ab12",))
    assert [(one.machines, one.threads) for one in found] == [((), 4), ((), 4), (("ab12",), None)]


def test_auto_takes_every_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    found = made(monkeypatch, "auto", ("ab12", "cd34"))
    assert [one.machines for one in found] == [(), ("ab12",), ("cd34",)]


def test_one_copy_may_have_stages_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for replicas, peers in (("1", ("ab12",)), ("auto", ())):
        (one,) = made(monkeypatch, replicas, peers)
        assert (one.peers, one.machines) == ("/hub.sock", ())


def test_copies_of_two_engines_each_are_refused() -> None:
    with pytest.raises(SettingError, match="--replicas"):
        main_engine(
            EngineSettings(files=FILES),
            load_settings(replicas="2", disaggregate=True),
            lambda settings, name: FakeEngine(),
        )
