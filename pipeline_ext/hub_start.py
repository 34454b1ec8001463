"""Finding this user's hub, starting it in the background so that it outlives us, and ending it."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import platformdirs
from msgspec import Struct

from backend.errors import ShardwiseError
from pipeline_ext.addresses import chosen_address
from pipeline_ext.extra import require_extra
from pipeline_ext.hub_control import HubClient, HubRefusalError, News, NoHubError, StopHub
from pipeline_ext.identity import head_folder
from pipeline_ext.ray_settings import own_environment

DEFAULT_PORT = 7700
# What the hub prints when it can be asked.
READY = "ready"
_START_SECONDS = 30.0
_STOP_SECONDS = 15.0


class HubStartError(ShardwiseError):
    """The hub cannot run, or does not end."""

    code = "hub_start"


class HubPlace(Struct, frozen=True):
    """Where the hub listened last: there its peers look for it."""

    address: str
    port: int


def last_place() -> HubPlace | None:
    """None where this user never had a hub."""
    try:
        return msgspec.json.decode((head_folder() / "hub.json").read_bytes(), type=HubPlace)
    except (OSError, msgspec.MsgspecError):
        return None


def running_hub() -> News | None:
    """What the hub says, if one runs."""
    try:
        return HubClient().news()
    except NoHubError:
        return None


def ensure_hub(address: str | None = None, port: int | None = None) -> News:
    """The running hub, or one that was started: at this address, else where it was last, else at the only private one.

    Raises:
        ShardwiseError: it cannot be started, or runs at another address than the one asked for.
    """
    require_extra()
    if (news := running_hub()) is not None:
        here, _, there = news.address.rpartition(":")
        if (address or here) != here or (port or int(there)) != int(there):
            raise HubRefusalError(
                f"The hub runs at {news.address} already",
                "Its peers know it by that address.",
                "Stop it first: shardwise peers stop",
            )
        return news
    last = last_place()
    if address is None and last is not None:
        address, port = last.address, port or last.port
    place = HubPlace(chosen_address(address), DEFAULT_PORT if port is None else port)
    _start(place)
    news = HubClient().news()
    host, _, number = news.address.rpartition(":")
    _keep(HubPlace(host, int(number)))
    return news


def stop_hub() -> bool:
    """Ends it, with Ray: False where none ran. Peers and their running stages go on, and wait for another."""
    client = HubClient()
    try:
        pid = client.news().pid
        client.ask(StopHub())
    except NoHubError:
        return False
    until = time.monotonic() + _STOP_SECONDS
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    raise HubStartError("The hub does not end", f"It is process {pid}.", f"kill -9 {pid}")


def hub_log() -> Path:
    return platformdirs.user_log_path("shardwise") / "hub.log"


def _start(place: HubPlace) -> None:
    log = hub_log()
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as errors:
        process = subprocess.Popen(
            # -P keeps a package of the same name in the current folder from being started in our place.
            [sys.executable, "-P", "-m", "pipeline_ext.hub_process", place.address, str(place.port)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
            env=own_environment(),
        )
    said = _first_words(process)
    if said.strip() != READY:
        what, _, why = said.strip().partition("\n")
        raise HubStartError(what or "The hub did not start", why, "" if what else f"Its log is {log}.")


def _first_words(process: subprocess.Popen[bytes]) -> str:
    """All that it prints, or what it printed when it is ready."""
    if process.stdout is None:
        return ""
    said, until = b"", time.monotonic() + _START_SECONDS
    with process.stdout as output:
        while (left := until - time.monotonic()) > 0 and not said.endswith((READY + "\n").encode()):
            if not select.select([output], [], [], left)[0]:
                break
            part = os.read(output.fileno(), 4096)
            if not part:
                break
            said += part
    return said.decode(errors="replace")


def _keep(place: HubPlace) -> None:
    path = head_folder() / "hub.json"
    path.write_bytes(msgspec.json.encode(place))
    path.chmod(0o600)
