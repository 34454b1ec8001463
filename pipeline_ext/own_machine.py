"""This machine as placement wants to know it: its rates measured, once since the computer was started."""

from __future__ import annotations

from backend.hardware.host_probe import measured
from backend.hardware.machine import Machine, read_machine
from backend.hardware.peer_probe import probed


def measured_machine() -> Machine:
    """Takes seconds where nothing is remembered; `read_machine` knows the rates afterwards."""
    return measured(probed(read_machine()))
