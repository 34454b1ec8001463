"""The wizard's outside for tests: fake machines and models of the catalogue, planned for by the real planner."""

from __future__ import annotations

from collections.abc import Callable

from app.tui.dependencies import WizardOutside
from app.tui.fit.offers import ModelOffer
from backend.hardware.cluster import Cluster
from backend.hardware.machine import Machine
from tests.fakes import reports
from tests.fakes.machines import cpu_machine



def wizard_outside(machine: Callable[[], Machine] = cpu_machine) -> WizardOutside:
    from backend.planner.fit.known_model import KnownModel
    from tests.fakes.models import dense
    import msgspec
    def fit(known, cluster, ask):
        good, bad = reports.plan(), reports.too_large()
        r = reports.report(*( [good, reports.plan(tensor=1, weights="int8", speed=reports.speed()), reports.plan(runnable=False, blocked="it has stages"), bad]), ways_out=reports.WAYS)
        return msgspec.structs.replace(r, ask=ask, model=known.name)
    return WizardOutside(
        hardware=lambda spec: Cluster((machine(),), spec, True),
        offers=lambda: (ModelOffer("starter", 134_000_000, 268_000_000, "starter"), ModelOffer("org/other-8B", 8_030_000_000, 16_060_000_000)),
        known=lambda name: KnownModel(name, dense(32, 4096, 32, 8, 14336, 128256), source="the catalogue"),
        fit=fit)
