"""Wishes: what the wizard's controls are set to, and what a way out changes of it. Pure."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace

from backend.planner.fit.ask import EngineName, FitAsk, Goal

LOCAL = "local"
GOALS: tuple[Goal, ...] = ("latency", "throughput", "cost")
ENGINES: tuple[EngineName, ...] = ("shardwise", "vllm")
USERS = tuple(1 << power for power in range(11))
ANY = "any"
WEIGHTS = (ANY, "model", "int8", "nf4", "fp8")
KV_FORMATS = (ANY, "model", "fp8", "int8")
_SHORTEST, _LONGEST = 1 << 10, 1 << 20
_USUAL_CONTEXT = 8192


@dataclass(frozen=True, slots=True)
class Wishes:
    """The controls' positions.

    Attributes:
        model: a name as the user gave it; empty before one is chosen.
        hardware: "local", or a machine elsewhere in the words of `--hardware`.
        context: positions of one user's sequence; None takes the model's own, 8K at most.
        weights, kv_format: the one format to consider; "any" for all.
        price: dollars for a GPU and hour; None takes the table's.
    """

    model: str = ""
    hardware: str = LOCAL
    goal: Goal = "latency"
    context: int | None = None
    users: int = 1
    engine: EngineName = "shardwise"
    weights: str = ANY
    kv_format: str = ANY
    price: float | None = None

    def ask(self, longest: int) -> FitAsk:
        """What to ask the planner. `longest`: positions that the model was made for."""
        return FitAsk(
            context=min(self.context or _USUAL_CONTEXT, longest),
            users=self.users,
            goal=self.goal,
            engine=self.engine,
            weights=() if self.weights == ANY else (self.weights,),
            kv_formats=() if self.kv_format == ANY else (self.kv_format,),
            price=self.price,
        )

    def with_option(self, option: str) -> Wishes | None:
        """The wishes after a way out, such as `--weights int8 --context 4096`; None where no control makes it."""
        wishes = self
        try:
            words = [part for word in shlex.split(option) for part in _name_and_value(word)]
        except ValueError:
            return None
        if not words or len(words) % 2:
            return None
        for name, value in zip(words[::2], words[1::2], strict=True):
            changed = wishes._with(name, value)
            if changed is None:
                return None
            wishes = changed
        return wishes

    def _with(self, name: str, value: str) -> Wishes | None:
        number = int(value.replace(",", "")) if value.replace(",", "").isdigit() else None
        if name == "--weights":
            return replace(self, weights=value)
        if name in ("--kv-format", "--kv"):
            return replace(self, kv_format=value)
        if name == "--hardware":
            return replace(self, hardware=value)
        if name in ("--context", "--max-context") and number:
            return replace(self, context=number)
        if name in ("--users", "--max-sequences") and number:
            return replace(self, users=number)
        if name == "--engine" and value in ENGINES:
            return replace(self, engine=value)
        return None


def contexts(longest: int) -> tuple[int, ...]:
    """The stops of the context slider: doublings from 1K, and the model's own length last."""
    stops = [stop for power in range(21) if _SHORTEST <= (stop := 1 << power) <= min(longest, _LONGEST)]
    return (*stops, longest) if not stops or stops[-1] < longest else tuple(stops)


def _name_and_value(word: str) -> list[str]:
    """`--name=value` as two words; a value may have equal signs of its own."""
    return word.split("=", 1) if word.startswith("--") else [word]
