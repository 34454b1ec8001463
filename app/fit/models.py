"""The models that are known without a hub, as a table: parameters, size at 16 bits, keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

from msgspec import Struct

from app.fit.columns import columns
from backend.planner.fit.known_model import KnownModel
from kvcache.layout import build_layout
from quant.kv_format import FP8, KVFormats

_MODEL_BYTES = 2
# Contexts from which on keys and values are told in GiB.
_LONG = 8192


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


def model_rows(models: Sequence[KnownModel], context: int = 1024) -> list[ModelRow]:
    """A row each, with keys and values of `context` positions; for a list, of a thousand."""
    return [model_row(model, context) for model in models]


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
    return states + sum(layout.token_bytes(group) * min(context, group.window or context) for group in layout.groups)


def as_table(rows: Sequence[ModelRow], width: int = 80) -> str:
    """A line a model."""
    context = rows[0].context if rows else 0
    unit, name = (1 << 30, "GiB") if context >= _LONG else (1 << 20, "MiB")
    head = ("model", "size", "GiB", f"KV {name}", "8 bits", "most")
    shown = [
        (
            row.name if row.served else f"{row.name}*",
            _billions(row.parameters),
            _amount(row.bytes / (1 << 30)),
            _amount(row.kv_bytes / unit),
            _amount(row.kv_bytes_8 / unit),
            _binary(row.most),
        )
        for row in rows
    ]
    legend = (
        f"size: parameters; GiB: of all weights at 16 bits; KV: of one sequence's keys and values at {context:,} "
        "tokens, in 16 bits, and in 8 with scales; most: the context it was made for. * is not served by this version. "
        "Any other model can be asked for too: `shardwise fit org/name`."
    )
    return "\n".join([*columns(head, shown, "<>>>>>", width), "", *wrap(legend, width)])


def _amount(amount: float) -> str:
    return f"{amount:,.0f}" if amount >= 99.95 else f"{amount:.1f}" if amount >= 9.995 else f"{amount:.2f}"


def _billions(parameters: int) -> str:
    billions = parameters / 1e9
    if billions < 1:
        return f"{parameters / 1e6:,.0f} M"
    return f"{billions:,.0f} B" if billions >= 99.5 else f"{billions:.3g} B"


def _binary(tokens: int) -> str:
    """128K for 131,072, as contexts are called; as digits where that is no round number."""
    for unit, name in ((1 << 20, "M"), (1 << 10, "K")):
        if tokens >= unit and tokens % unit == 0:
            return f"{tokens // unit}{name}"
    return f"{tokens:,}"
