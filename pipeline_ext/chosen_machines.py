"""ChosenMachines: a Cluster of which an engine may use some machines only: those of its copy of the model."""

from __future__ import annotations

from pipeline_ext.cluster import Cluster, SpawnOrder
from pipeline_ext.peer import Peer


class ChosenMachines:
    """A Cluster; everything but who there is goes to the whole one."""

    def __init__(self, whole: Cluster, ids: tuple[str, ...]) -> None:
        self._whole, self._ids = whole, frozenset(ids)

    @property
    def address(self) -> str:
        return self._whole.address

    def peers(self) -> tuple[Peer, ...]:
        """Without the head, unless it is among them."""
        return tuple(peer for peer in self._whole.peers() if peer.id in self._ids)

    def spawn(self, peer: str, order: SpawnOrder) -> None:
        self._whole.spawn(peer, order)

    def kill(self, peer: str, workers: tuple[str, ...]) -> None:
        self._whole.kill(peer, workers)

    def released(self, peer: str) -> None:
        self._whole.released(peer)

    def close(self) -> None:
        self._whole.close()
