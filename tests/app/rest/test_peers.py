"""`/peers`: this machine and the others, with the stages that the server's engines have there."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.peers_view import read_peers
from pipeline_ext.hub_control import socket_path
from pipeline_ext.identity import head_folder
from pipeline_ext.joining import join
from tests.pipeline_ext.hubs import plain_machine, running_hub


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATA_HOME", "STATE_HOME", "RUNTIME_DIR", "CONFIG_HOME"):
        (tmp_path / name.lower()).mkdir(mode=0o700)
        monkeypatch.setenv(f"XDG_{name}", str(tmp_path / name.lower()))


async def test_a_machine_alone_says_so(open_endpoint):
    async with open_endpoint() as endpoint:
        view = read_peers((await endpoint.http.get("/peers")).content)
    assert view.state == "none"
    (own,) = view.peers
    assert (own.id, own.health) == ("", "alive")
    assert own.memory_total > 0


async def test_peers_are_told_also_while_the_hub_is_away(open_endpoint, tmp_path: Path):
    async with open_endpoint() as endpoint:
        with running_hub(head_folder().parent, control=socket_path()) as hub:
            identity, _ = join(hub.invite(), "box", tmp_path / "box")
            hub.hub.table.came(identity.id, "10.0.0.2", "1", plain_machine())
            view = read_peers((await endpoint.http.get("/peers")).content)
            assert (view.state, view.address) == ("ready", f"127.0.0.1:{hub.port}")
            assert [(peer.id, peer.name, peer.health) for peer in view.peers[1:]] == [(identity.id, "box", "alive")]
        view = read_peers((await endpoint.http.get("/peers")).content)
        assert view.state == "away"
        assert [(peer.id, peer.health) for peer in view.peers[1:]] == [(identity.id, "lost")]
        assert "does not run" in view.problem


async def test_with_keys_nobody_without_one_is_told(open_endpoint):
    async with open_endpoint() as endpoint:
        endpoint.keys.create("someone")
        assert (await endpoint.http.get("/peers")).status_code == 401
