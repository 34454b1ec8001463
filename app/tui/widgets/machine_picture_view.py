"""MachinePictureView: a cluster's picture, drawn for the width there is. Drawing is `app.tui.fit.picture`'s."""

from __future__ import annotations

from textual.content import Content

from app.tui.fit.picture import picture_lines
from app.tui.widgets.drawn import Drawn
from backend.hardware.cluster import Cluster


class MachinePictureView(Drawn):
    """Nothing before a cluster is known."""

    def __init__(self) -> None:
        super().__init__()
        self._cluster: Cluster | None = None

    def show(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.redraw()

    def lines(self, width: int) -> list[Content]:
        return [] if self._cluster is None or width < 1 else picture_lines(self._cluster, width)
