"""resolve: a FitAsk with its "auto" filled in, or refused as `serve` would refuse it. Pure."""

from __future__ import annotations

from msgspec.structs import replace

from backend.errors import SettingError
from backend.planner.fit.ask import FitAsk
from backend.planner.fit.known_model import KnownModel
from backend.planner.kv_choice import choose_formats
from backend.planner.ranks import USEFUL_CONTEXT
from quant.weight_sizes import WEIGHT_SIZES


def resolve(model: KnownModel, ask: FitAsk) -> FitAsk:
    """The ask with a context, for this model.

    Raises SettingError for a context that the model was not made for, counts below what makes sense, and formats that
    the engine does not have.
    """
    most = model.facts.max_positions
    for option, count, least in (("--context", ask.context, 2), ("--users", ask.users, 1)):
        if count is not None and count < least:
            raise SettingError(f"{option} {count} is too small.", f"It must be at least {least}.")
    if ask.context is not None and ask.context > most:
        raise SettingError(
            f"--context {ask.context} is more than the model can do.",
            f"It was made for {most} positions.",
            f"Use --context {most} or less.",
        )
    if ask.engine == "shardwise":
        for weights in ask.weights:
            if weights not in WEIGHT_SIZES:
                raise SettingError(f"--weights {weights} is not known.", "", f"Use {', '.join(sorted(WEIGHT_SIZES))}.")
        for kv_format in ask.kv_formats:
            choose_formats(kv_format, None)
    served = most if ask.engine != "shardwise" or model.chosen is None else min(most, model.chosen)
    return replace(ask, context=ask.context or min(USEFUL_CONTEXT, served))
