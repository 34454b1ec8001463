"""The catalogue of well-known models in `assets/models`: dimensions that answer offline. What follows is `compose`'s.

Public: catalogue(), find_in_catalogue(name), search_catalogue(text), nearest_names(name),
known_from_catalogue(name) -> KnownModel | None; CatalogueModel.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources

import msgspec
from msgspec import Struct

from backend.planner.fit.compose import known_model_of
from backend.planner.fit.dimensions import Dimensions
from backend.planner.fit.known_model import KnownModel, StoredWeights


class _Row(Struct, frozen=True):
    """What a row has beside dimensions."""

    id: str
    source: str
    label: str = ""
    aliases: tuple[str, ...] = ()
    notes: str = ""
    total_params_computed: int | None = None
    active_params_computed: int | None = None
    kv_bytes_per_token_16bit_full_attn_layers: int | None = None
    stored_bytes: int | None = None
    excluded: tuple[str, ...] = ()
    unserved: str = ""


@dataclass(frozen=True, slots=True)
class CatalogueModel:
    """One model, or a variant of it that is packed otherwise.

    Attributes:
        id: of the row; usually its repository's.
        label: for people.
        aliases: other names of models with the same dimensions.
        dimensions: its sizes; packing: how the variant's checkpoint is packed, by a name of `packings`.
        parameters, active: of the text model, for lists; active those that a token passes; None where not counted.
        kv_bytes: of one token, of the layers that keep every position, at two bytes an element.
        source: where the dimensions come from. unserved: why this version cannot serve such models; empty where it can.
        excluded: see StoredWeights.
    """

    id: str
    label: str
    aliases: tuple[str, ...]
    dimensions: Dimensions
    packing: str
    parameters: int | None
    active: int | None
    kv_bytes: int | None
    source: str
    notes: str = ""
    stored_bytes: int | None = None
    excluded: tuple[str, ...] = ()
    unserved: str = ""

    def known(self, name: str = "") -> KnownModel:
        """Its facts, under the name that the user called it."""
        stored = StoredWeights(self.packing, self.stored_bytes, self.excluded)
        known = known_model_of(name or self.id, self.dimensions, source=f"the catalogue ({self.id})", stored=stored)
        return replace(known, unserved=self.unserved or _unread(self.packing))


@cache
def catalogue() -> tuple[CatalogueModel, ...]:
    """Every model, in the table's order."""
    text = (resources.files("assets") / "models" / "catalogue.jsonl").read_bytes()
    return tuple(_model(line) for line in text.splitlines() if line)


def find_in_catalogue(name: str) -> CatalogueModel | None:
    """The model of that name: its id or an alias, else the one that differs in no more than capitals, the
    organization, and words such as Instruct or AWQ. None where there is none.

    A name that tells of a packing gives the model with that packing, whatever the row's own.
    """
    plain = name.removeprefix("hf://").partition("@")[0].lower()
    exact = {spelling.lower(): model for model in reversed(catalogue()) for spelling in (model.id, *model.aliases)}
    if plain in exact:
        return _with_packing(exact[plain], plain)
    found = _by_words().get(_words(plain))
    return None if found is None else _with_packing(found, plain)


def search_catalogue(text: str) -> tuple[CatalogueModel, ...]:
    """Models whose names hold every word of the text; all for an empty one."""
    words = text.lower().split()
    return tuple(
        model
        for model in catalogue()
        if all(word in " ".join((model.id, model.label, *model.aliases)).lower() for word in words)
    )


def nearest_names(name: str, count: int = 3) -> tuple[str, ...]:
    """Ids that look like the name, for errors."""
    short = {model.id.rpartition("/")[2].lower(): model.id for model in catalogue()}
    found = difflib.get_close_matches(name.rpartition("/")[2].lower(), short, count, 0.5)
    return tuple(short[one] for one in found)


def known_from_catalogue(name: str) -> KnownModel | None:
    """The facts of a name that the catalogue has."""
    found = find_in_catalogue(name)
    return None if found is None else found.known(name)


def _model(line: bytes) -> CatalogueModel:
    row, dimensions = msgspec.json.decode(line, type=_Row), msgspec.json.decode(line, type=Dimensions)
    return CatalogueModel(
        id=row.id,
        label=row.label or row.id.rpartition("/")[2],
        aliases=row.aliases,
        dimensions=dimensions,
        packing=dimensions.quant or "model",
        parameters=row.total_params_computed,
        active=row.active_params_computed,
        kv_bytes=row.kv_bytes_per_token_16bit_full_attn_layers,
        source=row.source,
        notes=row.notes,
        stored_bytes=row.stored_bytes,
        excluded=row.excluded,
        unserved=row.unserved,
    )


# Words of a name that leave dimensions as they are.
_MANNER = frozenset(
    (
        *("instruct", "chat", "it", "hf", "base", "pt", "text", "thinking", "preview", "meta", "nvidia", "unsloth"),
        *("bf16", "fp16", "dynamic", "block", "quantized", "gguf", "gptq", "awq", "marlin", "autoround", "bnb"),
        *("fp8", "int4", "int8", "w8a8", "w4a16", "w8a16", "nvfp4", "fp4", "mxfp4", "4bit", "8bit"),
    )
)
_QUANT = re.compile(r"[._-]((?:iq|q|tq)\d\w*|bf16|f16|f32|mxfp4)\.gguf$")
# Organizations whose FP8 checkpoints have a scale for each block of 128 by 128, or one for a whole weight.
_BLOCKS = ("qwen/", "deepseek-ai/", "zai-org/", "minimaxai/", "moonshotai/", "xiaomimimo/", "stepfun-ai/")
_WHOLE = ("nvidia/", "amd/")


def _words(name: str) -> str:
    """What of a name tells its dimensions."""
    short = name.partition(":")[0].rpartition("/")[2].partition("(")[0]
    return " ".join(word for word in re.split(r"[-_ .]+", short) if word and word not in _MANNER)


@cache
def _by_words() -> dict[str, CatalogueModel]:
    """Models by what of their names tells their dimensions; of variants, the one that is not packed."""
    found: dict[str, CatalogueModel] = {}
    for model in sorted(catalogue(), key=lambda model: model.packing == "model"):
        for spelling in (*model.aliases, model.id):
            found[_words(spelling.lower())] = model
    return found


def _with_packing(model: CatalogueModel, name: str) -> CatalogueModel:
    told = _packing_of(name, model)
    if told in ("", model.packing):
        return model
    return replace(model, packing=told, stored_bytes=None, excluded=())


# Of what names and rows tell, the packings that no reader of ours unpacks (`packed` has those of a config).
_UNREAD = ("int8", "int4", "nf4", "bnb-int8", "nvfp4")


def _unread(packing: str) -> str:
    """Why a checkpoint so packed is not served, as a sentence; empty where it is."""
    parts = packing.split("+")
    unread = [part for part in parts if part.startswith(_UNREAD)]
    return f"Its weights are packed as {unread[0]}, which this version does not read." if unread else ""


def _packing_of(name: str, model: CatalogueModel) -> str:
    """The packing that a name tells of; empty where it tells none."""
    gguf = _QUANT.search(name)
    if gguf is not None:
        return f"gguf:{gguf[1].upper()}"
    words = set(re.split(r"[-_ ./:]+", name))
    if "fp8" in words:
        if name.startswith(_BLOCKS) or "block" in words:
            return "fp8-block"
        return "fp8-tensor" if name.startswith(_WHOLE) else "fp8"
    tells = (
        ("awq", "awq"),
        ("nvfp4", "nvfp4"),
        ("mxfp4", "mxfp4"),
        ("w8a8", "int8"),
        ("w4a16", "int4"),
        ("w8a16", "int8"),
        ("bnb", "bnb-int8" if "8bit" in words else "nf4-double"),
        ("gptq", "gptq8" if words & {"int8", "8bit"} else "gptq"),
        ("int4", "int4"),
        ("int8", "int8"),
    )
    told = next((packing for word, packing in tells if word in words), "")
    return told or ("model" if words & {"bf16", "fp16"} else "")
