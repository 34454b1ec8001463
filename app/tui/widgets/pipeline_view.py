"""PipelineView: the pipelines of a server, drawn for the width there is. Drawing is `app.tui.peers.pipeline`'s."""

from __future__ import annotations

from textual.content import Content

from app.tui.peers.pipeline import Pipeline, picture
from app.tui.widgets.drawn import Drawn


class PipelineView(Drawn):
    """Nothing where no model has several stages."""

    DEFAULT_CSS = """
    PipelineView { padding: 0 1; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._pipelines: tuple[Pipeline, ...] = ()

    def show(self, pipelines: tuple[Pipeline, ...]) -> None:
        if pipelines != self._pipelines:
            self._pipelines = pipelines
            self.redraw()

    def lines(self, width: int) -> list[Content]:
        return [line for each in self._pipelines for line in picture(each, width)] if width > 0 else []
