"""EngineOptions: how a test wants its engine process to behave; travels on the process' command line."""

from __future__ import annotations

import sys

import msgspec


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`poison`: a prompt token that kills the process when it is computed; `ranks`: how many have their own processes.

    Times in seconds.
    """

    start_seconds: float = 0.0
    start_error: str = ""
    crash_at_start: bool = False
    step_seconds: float = 0.005
    poison: int | None = None
    ranks: int = 0

    def command(self) -> tuple[str, ...]:
        """What EngineSupervisor's `command` has to be."""
        return (
            sys.executable,
            "-P",
            "-m",
            "tests.fakes.engine_main",
            msgspec.json.encode(self).decode(),
        )


def next_token(history: list[int]) -> int:
    """The answer of the fake model: depends on every token before and on their order."""
    state = 17
    for token in history:
        state = (state * 31 + token + 1) % 65521
    return state % 997


def expected_answer(prompt: tuple[int, ...], count: int) -> list[int]:
    history = list(prompt)
    for _ in range(count):
        history.append(next_token(history))
    return history[len(prompt) :]
