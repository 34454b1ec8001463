"""machine_of: a recorded topology as the Machine that reading it through the fake driver gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import msgspec
from msgspec.structs import replace

from backend.hardware.gpu import GpuReading
from backend.hardware.health import left_out
from backend.hardware.machine import Machine
from tests.fakes.machines import GIB, cpu_machine

_FAKES = Path(__file__).parent

TOPOLOGIES = tuple(sorted(path.stem for path in (_FAKES / "topologies").glob("*.json")))


@cache
def machine_of(topology: str) -> Machine:
    """A machine with 16 cores, 64 GiB of free main memory and the GPUs of `topologies/{topology}.json`.

    The driver's program reads them, in some 0.2 s the first time; nothing of this computer is in the answer.
    """
    path = _FAKES / "topologies" / f"{topology}.json"
    state = json.loads(path.read_text())
    reading = msgspec.json.decode(_read(path), type=GpuReading)
    faults = left_out(reading)
    lost = {fault.index for fault in faults}
    nodes = [gpu.get("numa_node") for gpu in state["gpus"]]
    base = cpu_machine(available=64 * GIB, cores=16)
    return replace(
        base,
        gpus=tuple(replace(gpu, numa_node=nodes[gpu.index]) for gpu in reading.gpus if gpu.index not in lost),
        links=reading.links,
        left_out=faults,
        pod=state.get("pod", False),
    )


def _read(path: Path) -> bytes:
    root = _FAKES.parents[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(_FAKES / "nvml"), str(root)]),
        "SHARDWISE_FAKE_NVML": str(path),
        "CUDA_MPS_PIPE_DIRECTORY": str(_FAKES / "no-such-folder"),
    }
    command = (sys.executable, "-P", "-m", "backend.hardware.ask_driver")
    return subprocess.run(command, env=environment, check=True, capture_output=True).stdout
