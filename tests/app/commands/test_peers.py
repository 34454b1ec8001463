"""`shardwise peers` without a second machine: refusals in words, and the table."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.commands.peers import peers
from app.doctor.peer_findings import peer_findings
from app.peer_table_text import as_table
from backend.errors import SettingError, ShardwiseError
from pipeline_ext import extra
from pipeline_ext.addresses import chosen_address
from pipeline_ext.extra import MissingExtraError
from pipeline_ext.hub_control import NoHubError, socket_path
from pipeline_ext.identity import head_folder
from pipeline_ext.invites import InviteError
from pipeline_ext.joining import join
from pipeline_ext.peer_view import GpuView, PeersView, PeerView, PlacedStage
from tests.pipeline_ext.hubs import plain_machine, running_hub

GIB = 1024**3


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATA_HOME", "STATE_HOME", "RUNTIME_DIR", "CONFIG_HOME"):
        (tmp_path / name.lower()).mkdir(mode=0o700)
        monkeypatch.setenv(f"XDG_{name}", str(tmp_path / name.lower()))


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extra, "find_spec", lambda name: None if name == "ray" else find_spec(name))


def run(*arguments: str) -> str:
    return CliRunner().invoke(peers, list(arguments), catch_exceptions=False, standalone_mode=False).output


def refusal(*arguments: str) -> ShardwiseError:
    error = CliRunner().invoke(peers, list(arguments), standalone_mode=False).exception
    assert isinstance(error, ShardwiseError)
    return error


@pytest.mark.usefixtures("without_ray")
def test_without_the_extra_it_is_said_how_to_install_it() -> None:
    for arguments in (("invite",), ("join",), ("join", "sw1-x")):
        error = refusal(*arguments)
        assert isinstance(error, MissingExtraError)
        assert 'pip install "shardwise[peers]"' in error.hint
    (finding,) = peer_findings()
    assert (finding.status, finding.fix) == ("note", 'pip install "shardwise[peers]"')


def test_what_cannot_be_is_refused_in_words() -> None:
    assert isinstance(refusal("join", "nonsense"), InviteError)
    assert "has joined no other" in refusal("join").what
    for bad in ("1", "0m", "5y", "31d", "-1h", "h"):
        assert isinstance(refusal("invite", "--expires", bad), SettingError)
    assert isinstance(refusal("invite", "--address", "203.0.113.9"), SettingError)
    for arguments in (("revoke",), ("remove", "box"), ("invite", "--revoke")):
        assert isinstance(refusal(*arguments), NoHubError)
    assert "No hub runs" in run("stop")


def test_the_choice_of_several_addresses_is_a_persons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline_ext.addresses.own_addresses", lambda: [("eth0", "10.0.0.5"), ("lo", "127.0.0.1")])
    assert chosen_address(None) == "10.0.0.5"
    several = [("eth0", "10.0.0.5"), ("docker0", "172.17.0.1"), ("eth1", "192.168.1.5"), ("wan", "8.8.8.8")]
    monkeypatch.setattr("pipeline_ext.addresses.own_addresses", lambda: several)
    with pytest.raises(SettingError) as caught:
        chosen_address(None)
    assert "10.0.0.5 (eth0), 192.168.1.5 (eth1)." in caught.value.why
    assert chosen_address("8.8.8.8") == "8.8.8.8"
    monkeypatch.setattr("pipeline_ext.addresses.own_addresses", lambda: [("wan", "8.8.8.8")])
    with pytest.raises(SettingError):
        chosen_address(None)


def test_list_and_doctor_tell_of_a_hub_and_its_peers(tmp_path: Path) -> None:
    assert "No machine has been added" in peer_findings()[0].what
    with running_hub(head_folder().parent, control=socket_path()) as hub:
        identity, _ = join(hub.invite(), "box", tmp_path / "box")
        hub.hub.table.came(identity.id, "10.0.0.2", "1", plain_machine())
        shown = run("list")
        assert "box" in shown
        assert "10.0.0.2" in shown
        (finding,) = peer_findings()
        assert (finding.status, "1 machine joined" in finding.what) == ("ok", True)
        hub.ray.ports = (7710, 7711, 7713)
        assert "7710-7711, 7713" in peer_findings()[1].what
        assert "Took back 1 invite." in (hub.invite(), run("revoke"))[1]
    assert "lost" in run("list")


def test_the_table_shows_what_a_machine_has() -> None:
    stages = (PlacedStage("m", 1, 14, 30, 30),)
    gpus = (GpuView("NVIDIA RTX 3090", 24 * GIB, 20 * GIB),) * 2
    box = PeerView(
        "ab",
        "box\x1b[2J",
        "10.0.0.2",
        "0.1.0",
        "silent",
        gpus,
        8,
        64 * GIB,
        32 * GIB,
        0.0002,
        125e6,
        stages,
        "not heard",
    )
    text = as_table(PeersView("ready", peers=(box,)))
    for part in ("box", "2x RTX 3090", "32.0 of 64.0 GiB free", "0.20 ms", "1.0 Gbit/s", "2: layers 15-30 of 30"):
        assert part in text
    assert "box: not heard" in text
    assert "\x1b" not in text
