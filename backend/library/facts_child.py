"""`python -m backend.library.facts_child`: a config on standard input, the model's facts on standard output, as JSON.

A process of its own, since it imports torch and transformers; `config_facts` starts it.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import Any

import msgspec

from backend.errors import BrokenModelError, ShardwiseError, UnsupportedModelError
from backend.library.config_dimensions import dimensions_of
from backend.library.outside import is_encoder
from backend.parentage import die_with_parent
from backend.planner.fit.compose import known_model_of
from backend.planner.fit.known_model import KnownModel
from backend.planner.model_facts import ModelFacts


def main() -> None:
    die_with_parent()
    with os.fdopen(os.dup(1), "wb") as answers:
        # What a library prints must not come between.
        os.dup2(2, 1)
        config = msgspec.json.decode(sys.stdin.buffer.read())
        try:
            answers.write(msgspec.json.encode(facts_of(config)))
        except ShardwiseError as error:
            answers.write(msgspec.json.encode([error.what, error.why, error.hint]))


def facts_of(raw: dict[str, Any]) -> KnownModel:
    """The model's facts. Raises BrokenModelError where the config tells too little."""
    config = _config(raw)
    if config is None:
        why = "needs code that comes with the model" if "auto_map" in raw else "is of a type that transformers lacks"
        return replace(
            known_model_of("", dimensions_of("the model", raw), source="dimensions in its config"),
            unserved=f"It {why} ({raw.get('model_type')!r}).",
        )
    text = _text(config)
    if text is not config and isinstance(raw.get("tie_word_embeddings"), bool):
        text.tie_word_embeddings = raw["tie_word_embeddings"]  # the whole model's decides
    try:
        return _served(raw, config, text)
    except UnsupportedModelError as error:
        why = f"{error.what} {error.why}"
    except Exception as error:  # noqa: BLE001
        # Constructors and forward passes of hundreds of families, of which tracing expects what served ones do.
        why = f"Models of type {config.model_type} are not served yet. Tracing it fails: {error}"
    return replace(_outlined(raw, config, text), unserved=why)


def _served(raw: dict[str, Any], config: Any, text: Any) -> KnownModel:
    """Facts of a model that this version serves, as `serve` plans with them."""
    from transformers import AutoModelForCausalLM

    from backend.surgery.describe import describe
    from backend.surgery.refusal import unsupported

    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise unsupported(config, "transformers has no causal language model of this type")
    facts = describe(text)
    try:
        known = known_model_of("", dimensions_of("the model", {**raw, **_fields(config)}))
    except (BrokenModelError, ArithmeticError, AttributeError):
        known = KnownModel("", facts)
    known = replace(known, states=(), exact=True, chosen=None, chooser_parameters=0)
    if facts.positions_reason:
        facts, known = _whole(facts, known, text)
    return replace(known, facts=facts, other_parameters=_others(config, text, facts.parameters))


def _whole(facts: ModelFacts, known: KnownModel, text: Any) -> tuple[ModelFacts, KnownModel]:
    """With what chooses keys, which is not read here, and all positions: how far it is served, `fit` asks of both."""
    from backend.surgery.outline import TEXT_FIRST, build_whole, count

    parameters = count(build_whole(text, TEXT_FIRST))
    known = replace(known, chosen=facts.max_positions, chooser_parameters=parameters - facts.parameters)
    most = text.max_position_embeddings
    return replace(facts, parameters=parameters, max_positions=most, positions_reason=""), known


def _others(config: Any, text: Any, inside: int) -> int:
    """Parameters of the whole model beside its text model's."""
    from backend.surgery.outline import WHOLE_FIRST, build_whole, count

    if text is config:
        return 0
    try:
        whole = build_whole(config, WHOLE_FIRST)
    except UnsupportedModelError:
        return 0
    counted = sum(one.numel() for name, one in whole.named_parameters() if is_encoder(name))
    return max(counted, count(whole) - inside if counted else 0)


def _outlined(raw: dict[str, Any], config: Any, text: Any) -> KnownModel:
    """Facts of a model that is refused: by the model on meta where it can be built, by dimensions else."""
    from backend.surgery.outline import build_whole, outlined

    size = dimensions_of("the model", {**raw, **_fields(config)})
    for part in (config,) if text is config else (config, text):
        try:
            model = build_whole(part)
        except UnsupportedModelError:
            continue
        outside = sum(one.numel() for name, one in model.named_parameters() if is_encoder(name))
        known = outlined(size, model, outside)
        others = outside or _others(config, text, known.facts.parameters)
        return replace(known, other_parameters=others)
    return known_model_of("", size, source="dimensions in its config")


def _config(raw: dict[str, Any]) -> Any:
    """transformers' config; None where it has no such type. Raises BrokenModelError for fields it cannot read."""
    from transformers import CONFIG_MAPPING

    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        return None
    try:
        return CONFIG_MAPPING[kind].from_dict(_unpacked(raw))
    except Exception as error:
        # Constructors of hundreds of families check their fields in as many ways.
        raise BrokenModelError("The model's config cannot be read.", str(error).strip().partition("\n")[0]) from error


def _unpacked(raw: dict[str, Any]) -> dict[str, Any]:
    """Without what tells how weights are packed: facts are of the model."""
    dropped = ("quantization_config", "auto_map")
    return {
        key: _unpacked(value) if isinstance(value, dict) and key.endswith("_config") else value
        for key, value in raw.items()
        if key not in dropped
    }


def _fields(config: Any) -> dict[str, Any]:
    """The config's fields, those included that its class works out."""
    fields, text = config.to_dict(), _text(config)
    inner = text.to_dict()
    for name in ("layers_block_type", "layer_types"):
        worked_out = getattr(text, name, None)
        if isinstance(worked_out, list | tuple):
            inner[name] = [str(one) for one in worked_out]
    return inner if text is config else {**fields, "text_config": inner}


def _text(config: Any) -> Any:
    try:
        return config.get_text_config()
    except ValueError:
        return config.get_text_config(decoder=True)  # it has an encoder of text as well


if __name__ == "__main__":
    main()
