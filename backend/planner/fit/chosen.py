"""A model that chooses the keys it attends to, as it is served: up to as many positions as it chooses. Pure."""

from __future__ import annotations

from dataclasses import replace

from backend.planner.fit.known_model import KnownModel
from backend.planner.model_facts import positions_reason


def as_served(model: KnownModel, context: int) -> KnownModel:
    """The model without what chooses, where the asked context is short enough; else with why it is not served."""
    if model.chosen is None or model.unserved:
        return model
    why = positions_reason(model.chosen, model.facts.max_positions)
    if context > model.chosen:
        return replace(model, unserved=why)
    facts = replace(
        model.facts,
        max_positions=min(model.chosen, model.facts.max_positions),
        positions_reason=why,
        parameters=model.facts.parameters - model.chooser_parameters,
    )
    return replace(model, facts=facts, chooser_parameters=0)
