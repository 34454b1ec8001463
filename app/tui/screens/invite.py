"""InviteScreen: the line that makes another machine a peer, and what its holder can do, over the screen."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Static

from app.tui.dependencies import PeerInvite

KEYS = "c copies the line, enter closes; in a shell, `shardwise peers invite` prints one"


class InviteScreen(ModalScreen[None]):
    """The line is in the clipboard from the start."""

    DEFAULT_CSS = """
    InviteScreen {
        align: center middle;
        background: $background 60%;
        & > Vertical {
            width: 96%;
            max-width: 120;
            height: auto;
            max-height: 95%;
            padding: 1 2;
            border: round $border;
            background: $surface;
        }
        Static { margin: 0 0 1 0; height: auto; }
        .line { color: $text-accent; text-wrap: wrap; text-overflow: fold; }
        .keys { color: $text-muted; margin: 0; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter,q", "dismiss", "Close", id="invite.close", tooltip="Close; the line stays valid"),
        Binding("c,y", "copy", "Copy", id="invite.copy", tooltip="Copy the line (through the terminal)"),
    ]
    HELP = """
# Invite

The line is all that another machine needs to become a peer. It expires; `shardwise peers revoke` ends it before.
Copying goes through the terminal (OSC 52); inside tmux it needs `set -g set-clipboard on`.
"""

    def __init__(self, invite: PeerInvite) -> None:
        super().__init__()
        self._invite = invite

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static("On the other machine, where shardwise is installed, run:", markup=False)
            yield Static(self._invite.line, classes="line", markup=False)
            yield Static(self._invite.words, markup=False)
            yield Static(KEYS, classes="keys", markup=False)

    def on_mount(self) -> None:
        self.action_copy()

    def action_copy(self) -> None:
        self.app.copy_to_clipboard(self._invite.line)
        self.notify("The line is in the clipboard (tmux: set -g set-clipboard on)", markup=False)
