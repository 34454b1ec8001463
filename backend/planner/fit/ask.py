"""FitAsk: what a person wants to know: for how many users, how long, how fast, on which engine. Plain data."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Goal = Literal["latency", "throughput", "cost"]
EngineName = Literal["shardwise", "vllm"]


class FitAsk(Struct, frozen=True, kw_only=True):
    """Everything that plans are judged by. Checked by whoever makes it from a user's words.

    Attributes:
        context: positions of one user's sequence, prompt and answer; None takes the model's own, 8192 at most.
        users: sequences that are answered at the same time.
        goal: what ranks first.
        engine: whose accounting of memory and time.
        engine_version: vLLM's, such as "0.19.0"; empty for the newest that is known.
        prompt, answer: tokens of a typical request, for times; as much of them as the context has room for.
        weights, kv_formats: formats to consider; empty for all that the engine has.
        price: dollars for one GPU and hour; None takes the table's, whose date the answer shows.
        utilization: vLLM's gpu_memory_utilization; None takes its version's own.
    """

    context: int | None = None
    users: int = 1
    goal: Goal = "latency"
    engine: EngineName = "shardwise"
    engine_version: str = ""
    prompt: int = 1024
    answer: int = 256
    weights: tuple[str, ...] = ()
    kv_formats: tuple[str, ...] = ()
    price: float | None = None
    utilization: float | None = None
