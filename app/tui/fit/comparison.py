"""Two plans figure by figure, with what differs. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from app.fit.devices import fullest, taken
from app.fit.words import rate, seconds
from app.tui.fit import words
from backend.planner.fit.report import FitPlan


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of both plans; `difference` is empty where there is none, and a word or a factor otherwise."""

    name: str
    left: str
    right: str
    difference: str


def compared(left: FitPlan, right: FitPlan) -> list[Row]:
    """All that plans are judged by, in the order of the table."""
    return [
        _words("verdict", words.verdict(left), words.verdict(right)),
        _words("runs here", "yes" if left.runnable else "no", "yes" if right.runnable else "no"),
        _words("layout", words.layout(left), words.layout(right)),
        _count("devices", len(left.devices), len(right.devices)),
        _words("weights", left.weights, right.weights),
        _words("KV format", left.kv_format, right.kv_format),
        _memory("fullest device", taken(fullest(left)), taken(fullest(right))),
        _memory("left there", fullest(left).unused, fullest(right).unused),
        *_terms(left, right),
        _count("KV tokens", left.kv_tokens, right.kv_tokens),
        _count("largest context", left.largest_context, right.largest_context),
        _count("users at once", left.concurrency, right.concurrency),
        *_speeds(left, right),
    ]


def _terms(left: FitPlan, right: FitPlan) -> list[Row]:
    """The terms of each plan's fullest device."""
    first = {term.name: term.bytes for term in fullest(left).terms}
    second = {term.name: term.bytes for term in fullest(right).terms}
    return [_memory(f"  {name}", first.get(name, 0), second.get(name, 0)) for name in dict.fromkeys((*first, *second))]


def _speeds(left: FitPlan, right: FitPlan) -> list[Row]:
    pairs: list[tuple[str, float | None, float | None, Callable[[float], str]]] = [
        (
            name,
            getattr(left.speed, field).likely if left.speed else None,
            getattr(right.speed, field).likely if right.speed else None,
            write,
        )
        for name, field, write in (
            ("first token", "first_token", seconds),
            ("token", "token", seconds),
            ("token, alone", "alone", seconds),
            ("tokens/s", "throughput", rate),
        )
    ]
    costs = (left.cost.per_million.likely if left.cost else None, right.cost.per_million.likely if right.cost else None)
    sent = (left.speed.communication if left.speed else None, right.speed.communication if right.speed else None)
    return [
        *(_figure(name, first, second, write) for name, first, second, write in pairs),
        _figure("sent a token", *sent, lambda amount: words.memory(int(amount))),
        _figure("$/1M tokens", *costs, words.dollars),
    ]


def _words(name: str, left: str, right: str) -> Row:
    return Row(name, left, right, "" if left == right else "differs")


def _count(name: str, left: int, right: int) -> Row:
    return Row(name, f"{left:,}", f"{right:,}", _factor(left, right))


def _memory(name: str, left: int, right: int) -> Row:
    change = right - left
    sign = "+" if change > 0 else "-"
    return Row(name, words.memory(left), words.memory(right), f"{sign}{words.memory(abs(change))}" if change else "")


def _figure(name: str, left: float | None, right: float | None, write: Callable[[float], str]) -> Row:
    texts = [words.NONE if amount is None else write(amount) for amount in (left, right)]
    return Row(name, texts[0], texts[1], _factor(left or 0, right or 0))


def _factor(left: float, right: float) -> str:
    """`x1.8`, or in percent where the two are close; empty where they are equal or one of them is missing."""
    if not left or not right or left == right:
        return ""
    ratio = right / left
    return f"x{ratio:.2g}" if ratio >= 1.995 or ratio <= 0.5 else f"{100 * (ratio - 1):+.0f}%"
