"""The models that are known without a hub, as a table: parameters, size at 16 bits, keys and values."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from app.fit.columns import columns
from app.fit.words import gib
from backend.planner.fit.known_model import KnownModel
from kvcache.layout import build_layout
from quant.kv_format import FP8, KVFormats

_KIB = 1 << 10
_MODEL_BYTES = 2


class ModelRow(Struct, frozen=True):
    """One model of the list.

    Attributes:
        parameters: of everything that its files hold.
        bytes: of the weights at 16 bits each.
        kv_bytes: of one sequence's keys and values at a context, in 16 bits; layers with windows keep no more than
            these. `kv_bytes_8` is the same in fp8 (or int8), scales included.
        context: that context; the model's own largest is `most`.
        served: whether this version serves it.
    """

    name: str
    parameters: int
    bytes: int
    kv_bytes: int
    kv_bytes_8: int
    context: int
    most: int
    served: bool


def model_row(model: KnownModel, context: int) -> ModelRow:
    """The row of a model, with keys and values of `context` positions."""
    parameters = model.facts.parameters + model.other_parameters
    return ModelRow(
        name=model.name,
        parameters=parameters,
        bytes=_MODEL_BYTES * parameters,
        kv_bytes=_kv_bytes(model, context, KVFormats()),
        kv_bytes_8=_kv_bytes(model, context, KVFormats(FP8, FP8)),
        context=context,
        most=model.facts.max_positions,
        served=not model.unserved,
    )


def _kv_bytes(model: KnownModel, context: int, formats: KVFormats) -> int:
    """Of one sequence, states of fixed size included; layers with windows stop at these."""
    states = sum(each.count * each.bytes for each in model.states)
    if not model.facts.layers:
        return states
    layout = build_layout(model.facts.layers, _MODEL_BYTES, formats=formats)
    return states + sum(
        layout.token_bytes(group) * min(context, group.window or context) for group in layout.groups
    )


def as_table(rows: Iterable[ModelRow], width: int = 80) -> str:
    """A line a model."""
    rows = list(rows)
    context = rows[0].context if rows else 0
    head = ("model", "parameters", "GiB", "KV", "at 8 bits", "longest", "served")
    shown = [
        (
            row.name,
            _count(row.parameters),
            gib(row.bytes),
            gib(row.kv_bytes),
            gib(row.kv_bytes_8),
            f"{row.most:,}",
            "yes" if row.served else "no",
        )
        for row in rows
    ]
    return "\n".join(
        [
            *columns(head, shown, "<>>>>><", width),
            "",
            f"GiB: of all weights at 16 bits; KV: GiB of one sequence's keys and values at {context:,} tokens, in 16",
            "bits, and at 8 bits with their scales; longest: the context it was made for; served: by this version.",
            "Any other model of the hub can be asked for too: `shardwise fit org/name`.",
        ]
    )


def _count(parameters: int) -> str:
    billions = parameters / 1e9
    return f"{billions:,.0f} B" if billions >= 99.5 else f"{billions:.3g} B" if billions >= 1 else f"{parameters / 1e6:,.0f} M"
