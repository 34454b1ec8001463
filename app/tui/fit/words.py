"""How the wizard writes plans: verdicts, layouts, tokens, memory; `app.fit.words` has what all faces say. Pure."""

from __future__ import annotations

from collections.abc import Callable

from app.fit.words import VERDICTS, seconds
from backend.planner.fit.report import FitPlan, Interval, VerdictKind

# A mark and a word for each verdict, so that neither colour nor glyph alone has to tell.
MARKS: dict[VerdictKind, str] = {"roomy": "✓", "fits": "✓", "fragile": "!", "too large": "✗"}
COLOURS: dict[VerdictKind, str] = {
    "roomy": "$text-success",
    "fits": "$text-success",
    "fragile": "$text-warning",
    "too large": "$text-error",
}
_GIB = 1 << 30
_MIB = 1 << 20
NONE = "-"


def verdict(plan: FitPlan) -> str:
    return f"{MARKS[plan.verdict.kind]} {plan.verdict.kind}"


def told(plan: FitPlan) -> str:
    """The verdict as all faces tell it: `✓ fits with margin`."""
    return f"{MARKS[plan.verdict.kind]} {VERDICTS[plan.verdict.kind]}"


def layout(plan: FitPlan) -> str:
    """Replicas of ranks and stages: TP4, TP4·PP2, 3x(TP2), EP8 where experts are whole; one device by its kind."""
    if plan.tensor * plan.stages == 1:
        one = "CPU" if plan.devices and plan.devices[0].gpu is None else "1 GPU"
        return one if plan.replicas == 1 else f"{plan.replicas}x({one})"
    parts = [f"{'EP' if plan.experts == 'expert' else 'TP'}{plan.tensor}"] if plan.tensor > 1 else []
    parts += [f"PP{plan.stages}"] if plan.stages > 1 else []
    inner = "·".join(parts)
    return inner if plan.replicas == 1 else f"{plan.replicas}x({inner})"


def tokens(count: int) -> str:
    """1,024 positions are 1K; never more than there are."""
    for factor, unit in ((1 << 20, "M"), (1 << 10, "K")):
        if count >= factor:
            figure = count * 10 // factor / 10
            return f"{figure:.0f}{unit}" if figure >= 10 or figure.is_integer() else f"{figure:.1f}{unit}"
    return str(count)


def memory(count: int) -> str:
    """Bytes as drivers and logs report memory: GiB, or a smaller unit where there is little."""
    if abs(count) < _MIB:
        return f"{count / 1024:.1f} KiB" if abs(count) >= 1024 else f"{count} B"
    figure, unit = (count / _GIB, "GiB") if abs(count) >= _GIB else (count / _MIB, "MiB")
    text = f"{figure:.0f}" if abs(figure) >= 100 or (unit == "MiB" and abs(figure) >= 10) else f"{figure:.1f}"
    return f"{text} {unit}"


def gib(count: int) -> str:
    """GiB without its unit: 79.2, 1008."""
    figure = count / _GIB
    return f"{figure:.0f}" if figure >= 1000 else f"{figure:.1f}"


def parameters(count: int) -> str:
    """135M, 8.03B, 1.04T."""
    for factor, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M")):
        if count >= factor:
            return f"{count / factor:.3g}{unit}"
    return f"{count:,}"


def dollars(amount: float) -> str:
    if amount < 0.01:
        return "<$0.01"
    return f"${amount:.2f}" if amount < 100 else f"${amount:,.0f}"


def spread(interval: Interval, write: Callable[[float], str] = seconds) -> str:
    """The likely value and its range: `27 ms (21 ms to 38 ms)`."""
    return f"{write(interval.likely)} ({write(interval.low)} to {write(interval.high)})"
