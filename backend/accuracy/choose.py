"""choose: which KV formats --kv-format auto takes, from what was measured of them. Pure, no torch."""

from __future__ import annotations

from collections.abc import Sequence

from backend.accuracy.report import MOST_CHANGE, MOST_DIVERGENCE, ContextAccuracy, FormatAccuracy
from backend.planner.kv_choice import KVChoice
from quant.kv_format import KVFormats, parse_kv_formats

BOTH = ("fp8", "int8")
# Outliers lie in K: where they spoil a format, V alone may still be stored in it.
VALUES_ONLY = ("k=model,v=fp8", "k=model,v=int8")


def choose(contexts: Sequence[ContextAccuracy]) -> KVChoice:
    """The quantized format that passes at every length with the least divergence: for K and V, else for V alone.

    Where none does, or none was measured, the model's own.
    """
    worst = {name: _worst(contexts, name) for name in (*BOTH, *VALUES_ONLY)}
    tokens = max((context.tokens for context in contexts), default=0)
    for names in (BOTH, VALUES_ONLY):
        passing = [one for name in names if (one := worst[name]) is not None and one.passes]
        if passing:
            best = min(passing, key=lambda one: one.divergence)
            return KVChoice(parse_kv_formats(best.kv_format), _accepted(best, worst, tokens))
    return KVChoice(KVFormats(), _refused([one for one in worst.values() if one is not None], tokens))


def needs_values_only(contexts: Sequence[ContextAccuracy]) -> bool:
    """Whether no format passes for both, so that those for V alone must be measured."""
    return not any(one is not None and one.passes for one in (_worst(contexts, name) for name in BOTH))


def _worst(contexts: Sequence[ContextAccuracy], name: str) -> FormatAccuracy | None:
    """The format's figures where they are worst; a length at which it fails counts before all others."""
    found = [one for context in contexts for one in context.formats if one.kv_format == name]
    return max(found, key=lambda one: (not one.passes, one.divergence), default=None)


def _accepted(best: FormatAccuracy, worst: dict[str, FormatAccuracy | None], tokens: int) -> str:
    figures = f"over {tokens:,} tokens it changes {_figures(best)}"
    if best.kv_format in BOTH:
        return f"K and V are stored as {best.kv_format}: {figures}."
    failed = "; ".join(f"{one.kv_format} for both changes {_figures(one)}" for name in BOTH if (one := worst[name]))
    return f"V is stored as {best.kv_format.removeprefix('k=model,v=')} and K as it is: {figures}, while {failed}."


def _refused(measured: list[FormatAccuracy], tokens: int) -> str:
    if not measured:
        return "K and V are stored in the model's dtype: no other format was measured."
    best = min(measured, key=lambda one: one.divergence)
    return (
        f"K and V are stored in the model's dtype: over {tokens:,} tokens the nearest format, {best.kv_format}, "
        f"changes {_figures(best)}, more than the {MOST_CHANGE:.1%} and {MOST_DIVERGENCE:.0e} that pass."
    )


def _figures(one: FormatAccuracy) -> str:
    return f"perplexity by {one.change:+.2%}, at a mean KL divergence of {one.divergence:.1e}"
