"""What a report says of the machine as a whole: who shares its GPUs, and what was left out."""

from __future__ import annotations

import pytest

from backend.planner.fit.ask import FitAsk
from backend.planner.fit.fit import fit
from tests.fakes.fit_models import cluster, known
from tests.fakes.topology import machine_of


@pytest.mark.parametrize(
    ("topology", "said"),
    [
        ("rtx3090-shared", "ollama (5120, 6.11 GiB)"),
        ("rtx4090-held", "are held by llama-server"),
        ("t4-mps", "Multi-Process Service"),
        ("a100-mig", "is divided by MIG"),
    ],
)
def test_who_has_a_gpu_is_told(topology: str, said: str) -> None:
    report = fit(known("8b"), cluster(machine_of(topology)), FitAsk())
    assert any(said in note for note in report.notes)


def test_of_a_quiet_machine_there_is_nothing_to_tell() -> None:
    report = fit(known("8b"), cluster(machine_of("dgx-h100")), FitAsk())
    assert not any("GPU" in note for note in report.notes)
