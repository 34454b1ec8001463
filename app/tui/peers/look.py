"""PeersLook: what the screen of the machines shows at one moment. Plain data."""

from __future__ import annotations

from dataclasses import dataclass

from app.health_view import Health
from pipeline_ext.peer_view import PeersView


@dataclass(frozen=True, slots=True)
class PeersLook:
    """The machines, and the server's word on its engines where one runs."""

    view: PeersView
    health: Health | None = None
