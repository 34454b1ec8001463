"""`shardwise peers`: adds machines, lists and removes them. The hub and the agent are `pipeline_ext`'s."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from typing import Annotated

import typer

from backend.errors import SettingError

peers = typer.Typer(no_args_is_help=True, rich_markup_mode=None, add_completion=False)
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_RAY_SECONDS = 20.0


@peers.callback()
def described() -> None:
    """Machines beside this one, which take stages of models that outgrow it."""


@peers.command()
def invite(
    address: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="This machine's address that peers come to; else its only private one."),
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port that peers come to. [default: 7700]")] = None,
    expires: Annotated[str, typer.Option(metavar="TIME", help="How long it may be used: 30m, 2h, 1d.")] = "1h",
    uses: Annotated[int, typer.Option(min=1, max=1000, help="How many machines may use it.")] = 1,
    take_back: Annotated[bool, typer.Option("--revoke", help="Take all open invites back instead.")] = False,
) -> None:
    """Print a command that makes another machine a peer of this one. Starts the hub where none runs."""
    if take_back:
        revoke(None)
        return
    seconds = _seconds(expires)
    from pipeline_ext.hub_control import HubClient, Invited, MakeInvite
    from pipeline_ext.hub_start import ensure_hub

    ensure_hub(address, port)
    _wait_for_ray()
    answer = HubClient().ask(MakeInvite(seconds, uses))
    if not isinstance(answer, Invited):
        raise SettingError("The hub did not make an invite")
    times = "once" if uses == 1 else f"by {uses} machines"
    _note(f"Run this on the other machine. It can be used {times}, within {expires}:\n")
    typer.echo(f"shardwise peers join {answer.line}")
    _note(
        f"\nWhoever has this line can join, and from then on run programs as you on this machine and on every peer: "
        f"give it\nonly to who may. `shardwise peers revoke {answer.name}` takes it back."
    )
    _note_ports(answer.wildcard_ports)


@peers.command()
def join(
    line: Annotated[
        str | None, typer.Argument(metavar="[LINE]", help="From `shardwise peers invite`; not needed to come back.")
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="What this machine is called there.")] = None,
) -> None:
    """Make this machine a peer, until Ctrl+C. The head may then run stages, and any program, here."""
    import asyncio

    from pipeline_ext.agent import Agent, HeadPlace, read_head
    from pipeline_ext.extra import require_extra
    from pipeline_ext.identity import peer_folder, read_identity
    from pipeline_ext.invites import InviteError, read_line
    from pipeline_ext.joining import join as join_by
    from pipeline_ext.lock_file import lock_file
    from pipeline_ext.own_machine import measured_machine

    require_extra()
    if line is not None:
        invited = read_line(line)
        identity, known_as = join_by(invited, name)
        head = HeadPlace(invited.address, invited.port)
        head.keep(identity.folder)
        typer.echo(f"Joined as {known_as} ({identity.id}). To come back later: shardwise peers join")
    else:
        folder = peer_folder()
        identity, head = read_identity(folder), read_head(folder)
        if identity is None or head is None:
            raise InviteError(
                "This machine has joined no other yet",
                "",
                "Run `shardwise peers invite` there, and paste its line here.",
            )
    held = lock_file(identity.folder / "agent.lock")
    if held is None:
        raise InviteError(
            "This machine is a peer already",
            "Another `shardwise peers join` of yours runs here.",
            "End that one first, with Ctrl+C.",
        )
    asyncio.run(_run(Agent(identity, head, _say, measure=measured_machine)))


async def _run(agent: object) -> None:
    """The agent, which Ctrl+C asks to leave; twice, to go at once."""
    import asyncio
    import signal

    from pipeline_ext.agent import Agent

    if isinstance(agent, Agent):
        for each in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(each, agent.leave)
        await agent.run()
        typer.echo("Left.")


@peers.command("list")
def list_peers(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show this machine and its peers: GPUs, memory, link, stages, health."""
    import msgspec

    from app.peer_news import asked_of_servers
    from app.peer_table_text import as_table

    view = asked_of_servers()
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(view), indent=1).decode())
        return
    print(as_table(view))
    if view.problem:
        _note(view.problem)
    _note_ports(view.open_ports)


@peers.command()
def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name or id, as `shardwise peers list` shows it.")],
    at_once: Annotated[bool, typer.Option("--now", help="Do not wait until its stages stand elsewhere.")] = False,
) -> None:
    """Send a peer away: its stages move first. It needs a new invite to come back."""
    from pipeline_ext.hub_control import HubClient, RemovePeer

    client = HubClient()
    client.ask(RemovePeer(name, at_once))
    _note(f"{name} is being removed.")
    while any(name in (peer.id, peer.name) for peer in client.news().peers):
        time.sleep(0.3)
    _note("Removed.")


@peers.command()
def revoke(
    name: Annotated[str | None, typer.Argument(metavar="[INVITE]", help="The invite's name; else all of them.")] = None,
) -> None:
    """Take open invites back. Machines that have joined stay: `shardwise peers remove` sends them away."""
    from pipeline_ext.hub_control import Counted, HubClient, RevokeInvites

    answer = HubClient().ask(RevokeInvites(name))
    count = answer.count if isinstance(answer, Counted) else 0
    _note(f"Took back {count} invite{'' if count == 1 else 's'}.")


@peers.command()
def stop() -> None:
    """End the hub and Ray on this machine. Stages that run go on; peers come back when it is started again."""
    from pipeline_ext.hub_start import stop_hub

    _note("The hub has ended." if stop_hub() else "No hub runs.")


def _say(line: str) -> None:
    """A terminal that has gone is no reason to leave."""
    with suppress(OSError):
        typer.echo(line)


def _wait_for_ray() -> None:
    """A few seconds after the hub's start, so that what is printed is true. Peers can join before."""
    from pipeline_ext.hub_control import HubClient

    until = time.monotonic() + _RAY_SECONDS
    client = HubClient()
    while (trouble := client.news().ray) and time.monotonic() < until:
        if trouble.startswith("Ray did not start"):
            break
        time.sleep(0.2)
    if trouble:
        _note(f"{trouble}. Peers can join, but nothing can be started on them yet.\n")


def _note_ports(ports: tuple[int, ...]) -> None:
    if not ports:
        return
    from pipeline_ext.hub_start import last_place
    from pipeline_ext.ray_settings import firewall_rule, port_words

    place = last_place()
    _note(
        f"\nRay listens on every address of this machine, ports {port_words(ports)}, and answers only to the cluster's "
        "token.\nTo shut them off from other networks, as root:\n  "
        + firewall_rule(place.address if place else "ADDRESS", ports)
    )


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d{1,6})([smhd])", text.strip())
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 1 <= seconds <= 30 * 86400:
        raise SettingError(f"--expires {text} is no time", "It is like 30m, 2h or 1d, and at most 30d.")
    return float(seconds)


def _note(text: str) -> None:
    typer.echo(text, err=True)
