"""The wizard's outside for tests: fake machines and models of the catalogue, planned for by the real planner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

from app.tui.dependencies import WizardOutside
from app.tui.fit.offers import ModelOffer
from app.tui.wizard_library import offer_of
from backend.errors import ModelNotFoundError, ShardwiseError
from backend.hardware.cluster import Cluster
from backend.hardware.hardware_words import machine_words
from backend.hardware.machine import Machine
from backend.hardware.specification import parse_hardware
from backend.library.model_table import catalogue, known_from_catalogue
from backend.planner.fit.ask import FitAsk
from backend.planner.fit.fit import fit
from backend.planner.fit.known_model import KnownModel
from backend.planner.fit.report import FitReport
from tests.fakes.machines import cpu_machine
from tests.fakes.models import dense

# SmolLM2-135M-Instruct, as its config tells.
STARTER = dense(30, 576, 9, 3, 1536, 49152, tied=True, size=64, max_positions=8192)


@dataclass
class WizardWorld:
    """What the fake outside answers, changed by tests; `asks` is what the planner was asked."""

    machine: Callable[[], Machine] = cpu_machine
    failures: dict[str, ShardwiseError] = field(default_factory=dict)
    asks: list[FitAsk] = field(default_factory=list)
    looked_up: list[str] = field(default_factory=list)

    def outside(self) -> WizardOutside:
        return WizardOutside(
            hardware=self._hardware, offers=self._offers, sketch=known_from_catalogue, known=self._known, fit=self._fit
        )

    def _hardware(self, spec: str) -> Cluster:
        if spec != "local":
            return parse_hardware(spec)
        machine = self.machine()
        return Cluster((machine,), machine_words(machine), local=True)

    def _offers(self) -> tuple[ModelOffer, ...]:
        return (ModelOffer("starter", 134_515_008, 269_030_016, "starter"), *map(offer_of, catalogue()))

    def _known(self, name: str) -> KnownModel:
        self.looked_up.append(name)
        if name in self.failures:
            raise self.failures[name]
        known = KnownModel(name, STARTER, source="its files") if name == "starter" else known_from_catalogue(name)
        if known is None:
            raise ModelNotFoundError(f"No model is called {name!r}", "The hub has none.", "Check the name.")
        return known

    def _fit(self, model: KnownModel, cluster: Cluster, ask: FitAsk) -> FitReport:
        self.asks.append(ask)
        return _planned(model, cluster, ask)


@cache
def _planned(model: KnownModel, cluster: Cluster, ask: FitAsk) -> FitReport:
    """Many tests ask the same; the planner is pure."""
    return fit(model, cluster, ask)
