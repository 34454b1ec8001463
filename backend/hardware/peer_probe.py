"""Probes which GPUs really write to each other: short copies in processes that may hang without harm.

What a driver claims is not always true (virtual machines, IOMMUs, patched drivers), and the first to find out is
otherwise a start that hangs, or answers that are wrong.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import time
from collections.abc import Iterator, Sequence
from itertools import combinations

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from backend.hardware.gpu import Gpu
from backend.hardware.machine import Machine
from backend.hardware.nvml import environment, program
from backend.hardware.peer import PeerPath
from backend.hardware.peer_store import PeerStore, default_peer_store

# Seconds: until the first pair is begun (torch is imported, contexts are made), and for a pair.
_START, _PAIR = 120.0, 20.0


class PairReport(Struct, frozen=True):
    """A line of the probing program: it begins a pair (no `done`), or has finished it. Numbers are of its devices."""

    first: int
    second: int
    done: bool = False
    direct: bool = False
    gigabytes: float = 0.0
    microseconds: float = 0.0
    problem: str = ""


def probed(machine: Machine, store: PeerStore | None = None, command: tuple[str, ...] = ()) -> Machine:
    """The machine with its peers known: from an earlier probe, or after one that takes some seconds.

    Where a pair cannot be probed (no torch for CUDA, no free memory), its peers stay unknown, and the next start tries
    again. Tests replace the store and the `command`.
    """
    if len(machine.gpus) < 2:
        return machine
    store = store or default_peer_store()
    peers = store.read(machine.gpus)
    if peers is None:
        peers = probe(machine.gpus, command)
        if len(peers) == len(list(combinations(machine.gpus, 2))):
            store.write(machine.gpus, peers)
    return replace(machine, peers=peers)


def probe(
    gpus: Sequence[Gpu], command: tuple[str, ...] = (), start: float = _START, pair: float = _PAIR
) -> tuple[PeerPath, ...]:
    """Every pair's finding. A pair that hangs or kills the program is named, and the others go on without it.

    start, pair: seconds until the first pair is begun, and for a pair. Empty where no pair could be begun.
    """
    command = command or program("backend.hardware.probe_peers")
    left = list(combinations(range(len(gpus)), 2))
    found: dict[tuple[int, int], PairReport] = {}
    while left:
        begun, why = _run(command, gpus, left, found, start, pair)
        if begun is not None:
            found[begun] = PairReport(*begun, done=True, problem=why)
        remaining = [numbers for numbers in left if numbers not in found]
        if len(remaining) == len(left):
            break  # it cannot even begin: there is no torch for CUDA here
        left = remaining
    return tuple(_path(gpus, report) for report in found.values())


def _run(
    command: tuple[str, ...],
    gpus: Sequence[Gpu],
    pairs: Sequence[tuple[int, int]],
    found: dict[tuple[int, int], PairReport],
    start: float,
    pair: float,
) -> tuple[tuple[int, int] | None, str]:
    """One program over these pairs, its findings put into `found`: the pair it did not end, and why."""
    arguments = [f"{first}-{second}" for first, second in pairs]
    shown = {"CUDA_VISIBLE_DEVICES": ",".join(gpu.uuid for gpu in gpus), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    process = subprocess.Popen(
        (*command, *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment() | shown,
    )
    begun: tuple[int, int] | None = None
    why = ""
    try:
        for line in _lines(process, start, pair):
            report = msgspec.json.decode(line, type=PairReport)
            numbers = (report.first, report.second)
            if numbers not in pairs:
                raise ValueError(f"nobody asked for {numbers}")
            begun = None if report.done else numbers
            if report.done:
                found[numbers] = report
        why = "the program that copies was ended by the driver"
    except TimeoutError:
        why = f"a copy did not end within {pair:.0f} s"
    except ValueError:  # msgspec's too
        why = "the program that copies told nonsense"
    finally:
        _end(process)
    return begun, why


def _lines(process: subprocess.Popen[bytes], start: float, pair: float) -> Iterator[bytes]:
    """The lines of its output until it ends. Raises TimeoutError where the next one takes too long."""
    if process.stdout is None:
        return
    descriptor, kept = process.stdout.fileno(), b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        deadline = time.monotonic() + start
        while True:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            received = os.read(descriptor, 1 << 16)
            if not received:
                return
            *lines, kept = (kept + received).split(b"\n")
            yield from lines
            if lines:
                deadline = time.monotonic() + pair


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    if process.stdout is not None:
        process.stdout.close()
    try:
        process.wait(timeout=1.0)
    except subprocess.TimeoutExpired:
        # Stuck inside the driver, where nothing kills it; it is left behind, and no longer looked at.
        process.returncode = -9


def _path(gpus: Sequence[Gpu], report: PairReport) -> PeerPath:
    return PeerPath(
        first=gpus[report.first].uuid,
        second=gpus[report.second].uuid,
        direct=report.direct,
        gigabytes=report.gigabytes,
        microseconds=report.microseconds,
        problem=report.problem,
    )
