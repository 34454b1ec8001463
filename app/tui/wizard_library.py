"""What the wizard asks the real outside for. Finding out is the library's, the hardware's and the planner's."""

from __future__ import annotations

from app.tui.dependencies import WizardOutside
from app.tui.fit.offers import ModelOffer
from backend.hardware.cluster import Cluster
from backend.library.model_table import CatalogueModel
from backend.planner.fit.ask import FitAsk
from backend.planner.fit.known_model import KnownModel
from backend.planner.fit.report import FitReport

_STARTER_PARAMETERS = 134_515_008
_DTYPE_BYTES = 2


def outside() -> WizardOutside:
    """Modules are imported where they are asked for first: the chat needs none of them."""
    return WizardOutside(hardware=_hardware, offers=offers, sketch=_sketch, known=_known, fit=_fit)


def offers() -> tuple[ModelOffer, ...]:
    """The starter, what is installed, and the catalogue; a model is offered once, as it lies here.

    Raises:
        ShardwiseError: the library cannot be read.
    """
    from backend.library.catalogue import catalogue
    from backend.library.model_table import catalogue as known_models
    from backend.library.names import STARTER

    here = [ModelOffer(each.name, None, each.bytes, "here", each.architecture) for each in catalogue()]
    starter = ModelOffer(STARTER, _STARTER_PARAMETERS, _DTYPE_BYTES * _STARTER_PARAMETERS, "starter")
    known = {each.name: each for each in (starter, *map(offer_of, known_models()))}
    shown = [_described(each, known.pop(each.name, None)) for each in here]
    return (*shown, *known.values())


def offer_of(model: CatalogueModel) -> ModelOffer:
    """A row of the catalogue, with the size that it would have with 16 bits a parameter."""
    parameters = model.parameters or model.known().facts.parameters
    note = "" if model.packing == "model" else model.packing
    return ModelOffer(
        model.id, parameters, _DTYPE_BYTES * parameters, note=note, also=" ".join((model.label, *model.aliases))
    )


def _described(installed: ModelOffer, known: ModelOffer | None) -> ModelOffer:
    """An installed model with its parameters, where these are known."""
    if known is None:
        return installed
    return ModelOffer(installed.name, known.parameters, installed.bytes, "here", installed.note)


def _hardware(spec: str) -> Cluster:
    from app.fitting import read_hardware

    return read_hardware(spec)


def _sketch(name: str) -> KnownModel | None:
    from backend.library.model_table import known_from_catalogue

    return known_from_catalogue(name)


def _known(name: str) -> KnownModel:
    from backend.library.known_models import known_model

    return known_model(name)


def _fit(model: KnownModel, cluster: Cluster, ask: FitAsk) -> FitReport:
    from backend.planner.fit.fit import fit

    return fit(model, cluster, ask)
