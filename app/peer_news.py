"""The machines as faces show them: asked of the hub, with the stages that a server's engines have there."""

from __future__ import annotations

from collections.abc import Mapping

import httpx
from msgspec.structs import replace

from app.background import running_servers
from app.peers_view import read_peers
from app.settings import client_key
from backend.hardware.machine import read_machine
from backend.planner.plan import Plan
from pipeline_ext.hub_control import HubClient, News, NoHubError
from pipeline_ext.hub_start import last_place
from pipeline_ext.identity import head_folder
from pipeline_ext.own_version import own_version
from pipeline_ext.peer import Peer
from pipeline_ext.peer_table import read_known
from pipeline_ext.peer_view import PeersView, PeerView, PlacedStage, peer_view

_NO_HUB = "No machine has been added; `shardwise peers invite` says how."
_AWAY = "The hub does not run: peers cannot come, nor be given stages; `shardwise peers invite` starts it."


def peers_now(plans: Mapping[str, Plan]) -> PeersView:
    """Blocks for some milliseconds. `plans`: by model name, of the engines that are asked for."""
    try:
        return view_of(HubClient(seconds=5.0).news(), plans)
    except NoHubError:
        return _without_hub(plans)


def view_of(news: News, plans: Mapping[str, Plan]) -> PeersView:
    notes = {note.peer: note.text for note in news.notes}
    return PeersView(
        state="ready",
        address=news.address,
        problem=news.ray,
        open_ports=news.wildcard_ports,
        peers=tuple(peer_view(peer, plans, notes.get(peer.id, "")) for peer in news.peers),
    )


def _without_hub(plans: Mapping[str, Plan]) -> PeersView:
    """This machine, and those that are known from before."""
    place, known = last_place(), read_known(head_folder() / "peers.json")
    own = Peer("", "this machine", place.address if place else "", read_machine(), None, "alive", own_version())
    return PeersView(
        state="away" if known else "none",
        address=f"{place.address}:{place.port}" if place and known else "",
        problem=_AWAY if known else _NO_HUB,
        peers=(peer_view(own, plans), *(peer_view(peer, plans) for peer in known)),
    )


def asked_of_servers() -> PeersView:
    """The same for who is no server itself: the stages are asked of this user's servers, as far as they answer."""
    view = peers_now({})
    found: dict[str, list[PlacedStage]] = {}
    for record in running_servers():
        for peer in _peers_of(record.url):
            found.setdefault(peer.id, []).extend(peer.stages)
    peers = tuple(replace(peer, stages=tuple(found.get(peer.id, ()))) for peer in view.peers)
    return replace(view, peers=peers)


def _peers_of(url: str) -> tuple[PeerView, ...]:
    key = client_key()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.get(f"{url}/peers", headers=headers, timeout=5.0, trust_env=False)
        return read_peers(answer.content).peers if answer.status_code == 200 else ()
    except (httpx.HTTPError, ValueError):
        return ()
