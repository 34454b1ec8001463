"""Faults that somebody wants: a server that is ended, a machine that is sent away or leaves, a client that goes."""

from __future__ import annotations

import signal
import subprocess
import time
from contextlib import suppress

import httpx
import psutil

from tests.faults.clock import jump, why_no_jumps
from tests.faults.cluster import FaultCluster, processes_of
from tests.faults.fault import Fault, Scene

END_SECONDS = 60.0
LEAVE_SECONDS = 90.0


def _terminated(scene: Scene) -> None:
    """It finishes what it has begun, and takes nothing new."""
    _signal_server(scene.cluster, signal.SIGTERM)


def _terminated_twice(scene: Scene) -> None:
    _signal_server(scene.cluster, signal.SIGTERM)
    time.sleep(0.5)
    _signal_server(scene.cluster, signal.SIGTERM)


def _signal_server(cluster: FaultCluster, number: signal.Signals) -> None:
    if cluster.server is not None:
        cluster.server.send_signal(number)


def _nothing_left(scene: Scene) -> None:
    """No process of the server, here or on a peer; then one is started again."""
    cluster = scene.cluster
    if cluster.server is None:
        return
    try:
        cluster.server.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        scene.problems.append(f"the server still runs {END_SECONDS:.0f} s after it was told to end")
    until = time.monotonic() + 20
    while (left := _server_processes(cluster)) and time.monotonic() < until:
        time.sleep(0.1)
    scene.problems += [f"left behind: {each}" for each in left]
    cluster.stop_server()
    cluster.serve()


def _server_processes(cluster: FaultCluster) -> list[str]:
    """What runs on any host and is neither the hub, an agent, Ray's, nor kept by a peer for the next stage."""
    names = ("shardwise serve", "-m backend.", "-m pipeline_ext.engine_process", "-m pipeline_ext.stage_process")
    return [
        f"{host.name} {' '.join(process.cmdline())[:100]}"
        for host in cluster.hosts
        for name in names
        for process in processes_of(host, name)
        if not _is_spare(process)
    ]


def _is_spare(process: psutil.Process) -> bool:
    """Whether it waits on a peer for its first words, or watches over one that does: it speaks with no engine."""
    with suppress(psutil.Error):
        on_peer = "dies-with-parent" not in process.cmdline()
        return "pipeline_ext.stage_process" in process.cmdline() and on_peer and not process.net_connections("inet")
    return True


def _removed(scene: Scene) -> None:
    holder = scene.holder()
    done = scene.cluster.head.run("shardwise", "peers", "remove", holder.name, seconds=END_SECONDS)
    if done.returncode != 0:
        scene.problems.append(f"`peers remove` failed: {done.stderr.strip()}")
    scene.cluster.sent_away(holder)


def _leaves(scene: Scene) -> None:
    """Ctrl+C where `peers join` runs, which ends when another has its layers."""
    agents = processes_of(scene.holder(), "peers", "join")
    for process in agents:
        process.send_signal(signal.SIGINT)
    _, left = psutil.wait_procs(agents, timeout=LEAVE_SECONDS)
    scene.problems += [f"the peer has not left after {LEAVE_SECONDS:.0f} s" for _ in left]


def _client_goes(scene: Scene) -> None:
    """In each phase: while it waits in line, in its prompt, and in its answer; nobody else may notice."""
    for patience in (0.01, 0.05, 0.2, 0.5, 1.0):
        body = {"model": "starter", "messages": [{"role": "user", "content": "Count to a thousand. " * 50}],
                "max_completion_tokens": 400, "stream": True}  # fmt: skip
        with httpx.stream("POST", f"{scene.cluster.url}/v1/chat/completions", json=body, timeout=30, trust_env=False):
            time.sleep(patience)


def _clock_jumps(scene: Scene) -> None:
    for hours in (1, -1, 0):
        jump([host.folder for host in scene.cluster.hosts], hours * 3600)
        time.sleep(2.0)


ENDS = (
    Fault("the server is ended", _terminated, loses=False, after=_nothing_left, ends_server=True),
    Fault("the server is ended twice", _terminated_twice, loses=False, after=_nothing_left, ends_server=True),
    Fault("a peer is sent away", _removed),
    Fault("a peer leaves", _leaves),
    Fault("clients go away", _client_goes, loses=False),
    Fault("the clock jumps an hour", _clock_jumps, loses=False, missing=why_no_jumps),
)
