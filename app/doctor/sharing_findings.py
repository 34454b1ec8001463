"""Findings about GPUs that others use too. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from app.doctor.finding import Finding
from backend.hardware.machine import Machine
from backend.hardware.sharing import sharing_of


def sharing_findings(machine: Machine) -> Iterator[Finding]:
    """Each means by which a GPU is shared, and how to have it alone."""
    for gpu in machine.gpus:
        for sharing in sharing_of(gpu, machine.pod):
            yield Finding("sharing", "warning" if sharing.harm else "note", sharing.what, sharing.fix)
