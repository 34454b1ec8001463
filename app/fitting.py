"""Fitting: from a model's name, hardware strings and wishes to FitReports; the faces' one way to the planner.

Finding things out is `backend.library`'s and `backend.hardware`'s, deciding `backend.planner.fit`'s.
"""

from __future__ import annotations

from collections.abc import Sequence

from backend.hardware.cluster import Cluster
from backend.hardware.machine import read_machine
from backend.hardware.peer_probe import probed
from backend.hardware.specification import parse_hardware
from backend.planner.fit.ask import FitAsk
from backend.planner.fit.fit import fit
from backend.planner.fit.known_model import KnownModel
from backend.planner.fit.report import FitReport


def fit_reports(model: str, hardware: Sequence[str], ask: FitAsk, *, offline: bool = False) -> tuple[FitReport, ...]:
    """A report for each hardware string, in their order.

    Raises:
        ShardwiseError: hardware that is not understood, an unknown or closed model, wishes that make no sense.
    """
    # What is typed wrongly should be told before a hub is asked.
    clusters = [read_hardware(text) for text in hardware]
    known = find_model(model, offline=offline)
    return tuple(fit(known, cluster, ask) for cluster in clusters)


def read_hardware(text: str) -> Cluster:
    """What a hardware string describes; of this computer what `serve` knows of it too, tested peers included."""
    here = text.strip().lower() == "local"
    return parse_hardware(text, probed(read_machine()) if here else None)


def find_model(name: str, *, offline: bool = False) -> KnownModel:
    """What is known of a model without its weights.

    Raises:
        ShardwiseError: an unknown or closed model, a hub that does not answer, files without what is needed.
    """
    from backend.library.known_models import known_model

    return known_model(name, offline=offline)
