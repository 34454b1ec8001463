"""CaseRow: one logged run, its words read tolerantly: what it states as configuration, apart from what was observed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backend.library.model_table import CatalogueModel, catalogue, find_in_catalogue
from backend.planner.fit.known_model import KnownModel
from tests.fit.engine_words import EngineWords, engine_of
from tests.fit.gpu_words import GpuWords, gpu_of
from tests.fit.quant_words import dtype_of, packing_of

# More positions, sequences or ranks than that is a slip of somebody's pen.
_MOST = 10**9


@dataclass(frozen=True, slots=True)
class CaseRow:
    """What a run was asked for. None where the row does not say.

    `packing` is resolved: the one that its words name, else the checkpoint's own.
    """

    id: str
    source: str
    engine: EngineWords
    gpu: GpuWords
    model: KnownModel | None
    packing: str
    dtype: str | None
    tp: int | None
    pp: int
    dp: int
    expert_parallel: bool
    utilization: float | None
    max_model_len: int | None
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    kv_dtype: str
    block_size: int | None
    enforce_eager: bool


def read_row(row: Mapping[str, Any]) -> CaseRow:
    """A row without its `observed`, which is not looked at. Never raises for what a row may hold."""
    notes = str(row.get("notes") or "")
    found = _model(row)
    packing = packing_of(row.get("dtype_quant"), row.get("model"))
    own = found.packing if found else "model"
    if packing is None or (packing == "fp8" and "fp8" in own):
        packing = own
    return CaseRow(
        id=str(row.get("id") or "?"),
        source=_source(row),
        engine=engine_of(row.get("engine")),
        gpu=gpu_of(row.get("gpu"), number(row.get("gpu_mem_gib"))),
        model=found.known(str(row.get("model") or found.id)) if found else None,
        packing=packing,
        dtype=dtype_of(row.get("dtype_quant")),
        tp=whole(row.get("tp")),
        pp=whole(row.get("pp")) or 1,
        dp=whole(row.get("dp")) or 1,
        expert_parallel=(whole(row.get("ep")) or 1) > 1,
        utilization=_share(row.get("gpu_memory_utilization")),
        max_model_len=whole(row.get("max_model_len")),
        max_num_seqs=whole(row.get("max_num_seqs")) or _noted(notes, r"max[-_]num[-_]seqs[ =]+(\d+)"),
        max_num_batched_tokens=whole(row.get("max_num_batched_tokens"))
        or _noted(notes, r"(?:mnbt|max[-_]num[-_]batched[-_]tokens)[ =]+(\d+)"),
        kv_dtype=str(row.get("kv_dtype") or "auto").lower(),
        block_size=whole(row.get("block_size")),
        enforce_eager=bool(row.get("enforce_eager")) or bool(re.search(r"^enforce_eager|--enforce-eager$", notes)),
    )


def number(value: object) -> float | None:
    """A finite number, written as one or in text; None for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def whole(value: object) -> int | None:
    """A positive whole number that a configuration could have."""
    found = number(value)
    return int(found) if found is not None and 1 <= found <= _MOST else None


def _share(value: object) -> float | None:
    found = number(value)
    if found is None or found <= 0:
        return None
    return found / 100 if found > 1 else found


def _noted(notes: str, pattern: str) -> int | None:
    found = re.search(pattern, notes)
    return int(found[1]) if found else None


def _source(row: Mapping[str, Any]) -> str:
    """Where a run was reported, without what tells apart the runs of one report."""
    words = str(row.get("source") or "?").split(" (")[0]
    return words.removeprefix("https://")


def _model(row: Mapping[str, Any]) -> CatalogueModel | None:
    """The catalogue's row of that id; or that of the model's own name, if it has the same sizes and tells more:
    encoders that come with it, or what its checkpoint leaves out of packing."""
    facts = row.get("facts")
    if not facts:
        return None
    found = next((model for model in catalogue() if model.id == facts), None) or find_in_catalogue(str(facts))
    named = find_in_catalogue(str(row.get("model") or ""))
    if found and named and (named.dimensions.other_parameters or named.excluded) and _alike(found, named):
        return named
    return found


def _alike(one: CatalogueModel, other: CatalogueModel) -> bool:
    sizes = (one.dimensions, other.dimensions)
    left, right = ((size.layers, size.hidden, size.heads, size.intermediate, size.vocab) for size in sizes)
    return left == right
