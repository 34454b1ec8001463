"""Faults of processes and machines: what is killed, and what stands still."""

from __future__ import annotations

import signal
import time

import psutil

from tests.faults.cluster import processes_of
from tests.faults.fault import Fault, Scene


def _worker(scene: Scene, on_peer: bool) -> psutil.Process:
    """A process that computes a stage, on a peer or on the head."""
    pids = [rank["pid"] for rank in scene.cluster.ranks() if bool(rank["peer"]) == on_peer]
    return psutil.Process(scene.choose.choice(pids))


def _rank_dies(scene: Scene) -> None:
    _worker(scene, on_peer=False).kill()


def _peers_rank_dies(scene: Scene) -> None:
    _worker(scene, on_peer=True).kill()


def _rank_freezes(scene: Scene) -> None:
    _worker(scene, on_peer=False).suspend()


def _peers_rank_freezes(scene: Scene) -> None:
    _worker(scene, on_peer=True).suspend()


def _engine_dies(scene: Scene) -> None:
    psutil.Process(scene.cluster.engine()["pid"]).kill()


def _engine_freezes(scene: Scene) -> None:
    psutil.Process(scene.cluster.engine()["pid"]).suspend()


def _machine_dies(scene: Scene) -> None:
    scene.holder().signal_all(signal.SIGKILL)


def _machine_freezes(scene: Scene) -> None:
    scene.holder().signal_all(signal.SIGSTOP)


def _no_spare(scene: Scene) -> None:
    """Before it, so that a machine that already has layers, or the head, has to take more."""
    dead = {host.name for host in scene.cluster.spares()}
    for name in dead:
        scene.cluster.hosts[name].signal_all(signal.SIGKILL)
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if not any(each["health"] == "alive" and each["name"] in dead for each in scene.cluster.machines()):
            return
        time.sleep(0.1)
    scene.problems.append("a dead machine is still called alive after 30 s")


def _agent_dies(scene: Scene) -> None:
    """The program that joined, not what computes: its line to the hub and its Ray node end, the stages go on."""
    for process in processes_of(scene.holder(), "peers", "join"):
        process.kill()


def _hub_dies(scene: Scene) -> None:
    for process in processes_of(scene.cluster.head, "hub_process"):
        process.kill()


def _hub_comes_back(scene: Scene) -> None:
    scene.cluster.invite()


def _ray_head_dies(scene: Scene) -> None:
    for process in processes_of(scene.cluster.head, "gcs_server"):
        process.kill()


DEATHS = (
    Fault("a rank dies", _rank_dies),
    Fault("a rank freezes", _rank_freezes),
    Fault("a peer's rank dies", _peers_rank_dies),
    Fault("a peer's rank freezes", _peers_rank_freezes),
    Fault("the engine dies", _engine_dies),
    Fault("the engine freezes", _engine_freezes),
    Fault("a peer dies, one is spare", _machine_dies),
    Fault("a peer dies, none is spare", _machine_dies, prepare=_no_spare),
    Fault("a peer freezes", _machine_freezes),
    Fault("a peer's agent dies", _agent_dies, loses=False),
    Fault("the hub dies", _hub_dies, loses=False, after=_hub_comes_back),
    Fault("Ray's head dies", _ray_head_dies, loses=False),
)
