"""Findings about machines beside this one: can they be added, does the hub run, what does Ray leave open."""

from __future__ import annotations

from app.doctor.finding import Finding
from backend.errors import ShardwiseError
from pipeline_ext.extra import INSTALL, missing_modules
from pipeline_ext.hub_control import HubClient, News, NoHubError
from pipeline_ext.hub_start import last_place
from pipeline_ext.identity import head_folder, head_identity, peer_folder, read_identity
from pipeline_ext.ray_settings import firewall_rule, port_words

_AREA = "peers"


def peer_findings() -> list[Finding]:
    """None of them keeps this machine from serving by itself."""
    if missing := missing_modules():
        return [Finding(_AREA, "note", f"Without {' and '.join(missing)}, no machine can be added.", INSTALL)]
    broken = _identities()
    try:
        news = HubClient(seconds=5.0).news()
    except NoHubError:
        return [*broken, _without_hub()]
    return [*broken, _hub(news), *_ports(news)]


def _identities() -> list[Finding]:
    """Keys that cannot be used, or that others may read."""
    found: list[Finding] = []
    for folder in (head_folder(), peer_folder()):
        try:
            if read_identity(folder) is not None and folder == head_folder():
                head_identity()
        except ShardwiseError as error:
            found.append(Finding(_AREA, "warning", f"{error.what}: {error.why}", error.hint))
    return found


def _without_hub() -> Finding:
    if last_place() is None:
        return Finding(_AREA, "ok", "No machine has been added; `shardwise peers invite` adds one.")
    return Finding(
        _AREA,
        "note",
        "The hub does not run: peers cannot come, nor be given stages.",
        "Start it: shardwise peers invite",
    )


def _hub(news: News) -> Finding:
    count = len(news.peers) - 1
    away = [peer.name for peer in news.peers if peer.health not in ("alive", "leaving")]
    what = f"The hub listens on {news.address}, and {count} machine{'' if count == 1 else 's'} joined it."
    if news.ray:
        return Finding(_AREA, "warning", f"{what} {news.ray}.", "Its log is hub.log in the log folder.")
    if away:
        return Finding(_AREA, "note", f"{what} Away: {', '.join(away)}.", "There: shardwise peers join")
    return Finding(_AREA, "ok", what)


def _ports(news: News) -> list[Finding]:
    """Ray has no setting for the address of its servers."""
    if not news.wildcard_ports:
        return []
    address = news.address.rpartition(":")[0]
    return [
        Finding(
            _AREA,
            "note",
            f"Ray listens on every address, ports {port_words(news.wildcard_ports)}, behind the cluster's token.",
            f"To shut them off from other networks, as root: {firewall_rule(address, news.wildcard_ports)}",
        )
    ]
