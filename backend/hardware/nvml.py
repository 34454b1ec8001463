"""NVIDIA's GPUs as their driver describes them, asked in a process of its own that may hang without harm."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType

import msgspec

from backend.hardware.gpu import GpuReading
from backend.library.locations import source_root

_TIMEOUT = 15.0  # seconds; a GPU that wakes from power-down takes several


def driver_installed() -> bool:
    """Whether there is an NVIDIA driver to ask."""
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False
    return True


def read_gpus(timeout: float = _TIMEOUT, command: tuple[str, ...] = ()) -> GpuReading:
    """Asks the driver within `timeout` seconds and does not raise. Tests replace the asking `command`."""
    if not command:
        if not driver_installed():
            return GpuReading()
        command = program("backend.hardware.ask_driver")
    asked = ask(command, timeout)
    if asked is None:
        return GpuReading(problem=f"The NVIDIA driver did not answer within {timeout:.0f} s.")
    output, complaint = asked
    try:
        return msgspec.json.decode(output, type=GpuReading)
    except msgspec.MsgspecError:
        return GpuReading(problem=f"Asking the NVIDIA driver failed: {complaint}")


def program(module: str) -> tuple[str, ...]:
    """The command line of a module of ours; -P, because a person's own folder may have a package `backend`."""
    return (sys.executable, "-P", "-m", module)


def environment() -> dict[str, str]:
    """What such a program needs: our own sources first."""
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(source_root()), *(part for part in inherited if part)])}


def ask(
    command: tuple[str, ...], timeout: float, more: Mapping[str, str] = MappingProxyType({})
) -> tuple[bytes, str] | None:
    """A program's output, and its last words; None where it did not end in time. `more`: for its environment."""
    asking = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**environment(), **more},
    )
    try:
        output, errors = asking.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        asking.kill()
        # A process stuck inside the driver cannot be killed; it is left behind, unwaited for.
        with suppress(subprocess.TimeoutExpired):
            asking.communicate(timeout=1.0)
        return None
    lines = errors.decode("utf-8", "replace").strip().splitlines()
    return output, lines[-1] if lines else f"exit status {asking.returncode}"
