"""MachinePanel: which machine to plan for, and its picture. Reading machines is the outside's."""

from __future__ import annotations

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.message import Message
from textual.widgets import Input, Label, Static

from app.tui.fit.wishes import LOCAL
from app.tui.widgets.machine_picture_view import MachinePictureView
from backend.errors import ShardwiseError
from backend.hardware.cluster import Cluster


class MachinePanel(Vertical):
    """A field for a machine in words over its picture, which is drawn anew for each width."""

    DEFAULT_CSS = """
    MachinePanel {
        & > Horizontal { height: 1; }
        & > Horizontal > Label { width: 10; }
        & > Horizontal > Input { width: 1fr; }
        & > .hint { color: $text-muted; height: auto; }
        & > .problem { color: $text-error; height: auto; display: none; }
        & > VerticalScroll { height: 1fr; margin: 1 0 0 0; scrollbar-size-vertical: 1; &:focus { background: $panel; } }
    }
    """

    class Wanted(Message):
        """The user wants to plan for this machine, or to have it read again."""

        def __init__(self, hardware: str) -> None:
            super().__init__()
            self.hardware = hardware

    def __init__(self, hardware: str) -> None:
        super().__init__(id="machine", classes="pane")
        self._hardware = hardware

    def compose(self) -> ComposeResult:
        with Horizontal():
            yield Label("hardware")
            yield Input(self._hardware, placeholder=LOCAL, id="hardware", compact=True)
        yield Static("local, or one elsewhere: 4x H100-80GB", classes="hint", markup=False)
        yield Static("", classes="problem", markup=False)
        with VerticalScroll(id="picture"):
            yield MachinePictureView()

    def on_mount(self) -> None:
        self.border_title = "F2 Machine"

    def set_hardware(self, hardware: str) -> None:
        self.query_one(Input).value = hardware

    def show(self, cluster: Cluster) -> None:
        self._say("")
        self.query_one(MachinePictureView).show(cluster)

    def refuse(self, error: ShardwiseError) -> None:
        """What is wrong with the hardware as it was written; the machine shown before stays."""
        self._say(str(error))

    def _say(self, problem: str) -> None:
        static = self.query_one(".problem", Static)
        static.update(problem)
        static.display = bool(problem)
        self.query_one(".hint").display = not problem

    @on(Input.Submitted)
    def _want(self, event: Input.Submitted) -> None:
        event.stop()
        self.post_message(self.Wanted(event.value.strip() or LOCAL))
