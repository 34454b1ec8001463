"""Dependencies: what the TUI asks of the outside (library, servers, files), in one value that tests replace."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from app import background, history
from app.background import ServerRecord, StartedServer
from app.tui import preferences
from app.tui.fit.offers import ModelOffer
from backend.hardware.cluster import Cluster
from backend.planner.fit.ask import FitAsk
from backend.planner.fit.known_model import KnownModel
from backend.planner.fit.report import FitReport
from pipeline_ext.peer_view import PeersView


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """A model to offer: `bytes` is its size on disk, or to download where it is not installed; None if not known."""

    name: str
    bytes: int | None
    installed: bool
    note: str = ""


Report = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class WizardOutside:
    """What the wizard asks for; all of it may block (called in threads) and may raise ShardwiseError.

    Attributes:
        hardware: this machine as read now ("local"), or one elsewhere by its words.
        offers: the models to search among, those on this machine first.
        sketch: what the catalogue knows of a model, at once; None where it does not have it.
        known: all that is known of a model by its name; may ask the hub.
        fit: all plans for a model on machines, best first.
    """

    hardware: Callable[[str], Cluster]
    offers: Callable[[], tuple[ModelOffer, ...]]
    sketch: Callable[[str], KnownModel | None]
    known: Callable[[str], KnownModel]
    fit: Callable[[KnownModel, Cluster, FitAsk], FitReport]


@dataclass(frozen=True, slots=True)
class PeerInvite:
    """`line` is what to paste on another machine; `words` say what its holder can do, and for how long it is good."""

    line: str
    words: str


@dataclass(frozen=True, slots=True)
class PeersOutside:
    """What the screen of the machines asks of this one; all of it may block (called in threads), and may raise
    ShardwiseError.

    Attributes:
        view: the machines as this one's hub knows them, where no server tells.
        invite: a line for another machine; starts the hub where none runs.
        remove: lets a machine go by its id; at once, or when its layers have moved.
        obstacle: why no machine can be added here, with what to do; empty where one can.
    """

    view: Callable[[], PeersView]
    invite: Callable[[], PeerInvite]
    remove: Callable[[str, bool], None]
    obstacle: Callable[[], str]


@dataclass(frozen=True, slots=True)
class Dependencies:
    """The outside.

    Attributes:
        history: the chat database; None keeps chats in memory.
        preferences: the file of remembered settings.
        choices: the models to offer, best first; may block (called in a thread).
        fetch: makes a model wholly local, reporting (bytes done, bytes in total); may block (in a thread).
        find: a running server; one that serves the named model, where one is named.
        start: starts a server for a model in the background, with these options of `serve`.
        exports: the folder that exported chats go to.
        wizard: what the model-fit wizard asks for.
        peers: what the screen of the machines asks for.
    """

    history: Path | None
    preferences: Path
    choices: Callable[[], tuple[ModelChoice, ...]]
    fetch: Callable[[str, Report], None]
    find: Callable[[str | None], Awaitable[ServerRecord | None]]
    start: Callable[[str, tuple[str, ...]], StartedServer]
    exports: Path
    wizard: WizardOutside
    peers: PeersOutside


def of_this_machine(key: str | None = None) -> Dependencies:
    """The real ones."""
    from app.tui import library, peers_library, wizard_library

    return Dependencies(
        history=history.default_path(),
        preferences=preferences.default_path(),
        choices=library.choices,
        fetch=library.fetch,
        find=lambda model: background.find_server(model, key),
        start=background.start_server,
        exports=Path.cwd(),
        wizard=wizard_library.outside(),
        peers=peers_library.outside(),
    )
