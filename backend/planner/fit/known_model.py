"""KnownModel: all that is known of a model before its weights are here. Plain data; `backend.library` finds it out."""

from __future__ import annotations

from dataclasses import dataclass

from backend.planner.model_facts import ModelFacts


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """How the files of a checkpoint hold its weights.

    Attributes:
        packing: "model" (16 or 32 bits, as the config's dtype), or a name of `backend.planner.fit.packings`.
        bytes: of all weight files, as their headers tell; None where only dimensions are known.
        excluded: linears that stay in the model's dtype beside the output layer, as their config names them.
    """

    packing: str = "model"
    bytes: int | None = None
    excluded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StateLayers:
    """Layers that keep a state of a fixed size for each sequence instead of K and V (Mamba, gated delta nets).

    Attributes:
        count: how many layers.
        bytes: of one sequence's state in one of them, over all ranks, in the model's dtype.
        parameters: of all of them together, beside MLPs and experts; divided over ranks.
    """

    count: int
    bytes: int
    parameters: int = 0


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model by its config, its headers or the catalogue.

    Attributes:
        name: what the user called it.
        facts: of the text model; `facts.layers` has only the layers that keep K and V (or latents).
        stored: how its files hold the weights.
        source: where this is known from, for people ("the hub's config and headers", "the catalogue (…)").
        unserved: why this version of shardwise cannot serve it, as a sentence; empty where it can.
        states: layers that keep something else.
        other_parameters: outside the text model (image and sound encoders): engines that serve them load these too,
            whole on every rank unless they say otherwise.
        rope_elements: of the tables of cosines and sines over all positions, which vLLM keeps in the model's dtype.
        chosen: how many keys each token chooses to attend to, where this version serves contexts up to that length
            only, of which it attends to all; None where nothing is chosen.
        chooser_parameters: of `facts`, those of what chooses, which this version then does not even read.
        exact: whether weights are known tensor by tensor, rather than from dimensions.
    """

    name: str
    facts: ModelFacts
    stored: StoredWeights = StoredWeights()
    source: str = ""
    unserved: str = ""
    states: tuple[StateLayers, ...] = ()
    other_parameters: int = 0
    rope_elements: int = 0
    exact: bool = False
    chosen: int | None = None
    chooser_parameters: int = 0
