"""Faults of links: cut without a word, slow, and parted for a while."""

from __future__ import annotations

import time

from tests.faults.fault import Fault, Scene

PARTED_SECONDS = 10.0
BRIEF_SECONDS = 1.0


def _cut(scene: Scene) -> None:
    scene.cluster.hosts.cut(scene.holder().name)


def _slow(scene: Scene) -> None:
    scene.cluster.hosts.shape(scene.holder().name, delay=0.1, bandwidth=4e6)


def _parted_then_healed(scene: Scene) -> None:
    scene.cluster.hosts.part(scene.cluster.head.name, scene.holder().name)
    time.sleep(PARTED_SECONDS)
    scene.cluster.hosts.heal()


def _parted_briefly(scene: Scene) -> None:
    scene.cluster.hosts.part(scene.cluster.head.name, scene.holder().name)
    time.sleep(BRIEF_SECONDS)
    scene.cluster.hosts.heal()


LINKS = (
    Fault("a link is cut without FIN", _cut, links=True),
    Fault("a link is slow", _slow, loses=False, links=True),
    Fault("a link is parted for a moment", _parted_briefly, loses=False, links=True),
    Fault("a link is parted, then heals", _parted_then_healed, links=True),
)
