"""Facts of every architecture that transformers knows: `python -m tests.fit.architectures [TYPE ...]`.

Each is held to the model that transformers builds. Prints a line for each type of causal language model, and ends with
a line of JSON. Its status is 1 where a type gives no answer, or a wrong count.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.initialization import no_init_weights

from backend.errors import ShardwiseError
from backend.library.facts_child import facts_of
from backend.planner.fit.known_model import KnownModel
from kvcache.layout import build_layout
from tests.conformance.architectures.shrink import shrink


@dataclass(frozen=True)
class Answer:
    """What was found of a type.

    Attributes:
        verdict: "served", "outlined" (refused, and counted on meta), "by fields", "wrong", "nothing", or "no config"
            where transformers refuses the type's own default one.
        why: of what is not served, the reason; of what is wrong, the numbers.
    """

    kind: str
    verdict: str
    why: str
    known: KnownModel | None


def kinds() -> dict[str, type[PreTrainedConfig]]:
    """Every type of causal language model."""
    return {config.model_type: config for config in AutoModelForCausalLM._model_mapping.keys()}  # noqa: SIM118


def answer(config: type[PreTrainedConfig]) -> Answer:
    """The facts of a small model of the type, and whether they are those of the model that transformers builds."""
    kind = config.model_type
    raw = _raw(config)
    if raw is None:
        return Answer(kind, "no config", "", None)
    try:
        known = facts_of(raw)
    except ShardwiseError as error:
        return Answer(kind, "nothing", str(error), None)
    wrong = _wrong(raw, known)
    if wrong:
        return Answer(kind, "wrong", wrong, known)
    verdict = "by fields" if not known.exact else "outlined" if known.unserved else "served"
    return Answer(kind, verdict, known.unserved, known)


def _raw(config: type[PreTrainedConfig]) -> dict[str, Any] | None:
    """A config.json: shrunk where the type can be, of its default sizes else (on meta they take no memory)."""
    made = None
    for make in (lambda: shrink(config), config):
        try:
            made = make()
            break
        except Exception:  # noqa: BLE001
            continue
    if made is None:
        return None
    return json.loads(json.dumps(made.to_dict(), default=str)) | {"model_type": config.model_type}


def _wrong(raw: dict[str, Any], known: KnownModel) -> str:
    """What contradicts the model that transformers builds; empty where nothing does, or it builds none."""
    facts = known.facts
    if facts.layers:
        build_layout(facts.layers, 2)  # raises for a layer that keeps nothing
    if not facts.layers and not known.states:
        return "no layer keeps anything"
    if facts.replicated_parameters < 0 or facts.parameters < 1:
        return f"{facts.parameters} parameters, {facts.replicated_parameters} of them whole on every rank"
    if not known.exact:
        return ""
    built = _count(raw)
    whole = facts.parameters + known.other_parameters
    return "" if built in (None, facts.parameters, whole) else f"{facts.parameters} parameters of {built}"


def _count(raw: dict[str, Any]) -> int | None:
    config = transformers.CONFIG_MAPPING[raw["model_type"]].from_dict(raw)
    try:
        with torch.device("meta"), no_init_weights():
            model = AutoModelForCausalLM.from_config(config)
            model.tie_weights()
    except Exception:  # noqa: BLE001
        return None
    return sum(one.numel() for one in model.parameters())


def main(names: list[str]) -> int:
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    found = Counter[str]()
    for kind, config in kinds().items():
        if names and kind not in names:
            continue
        result = answer(config)
        found[result.verdict] += 1
        print(f"{kind:32} {result.verdict:12} {' '.join(result.why.split())[:120]}", flush=True)
    print(json.dumps(dict(sorted(found.items()))))
    return 1 if found["wrong"] + found["nothing"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
