"""The engine process without work: it gives the engine time to tidy up, more often while there is something to do."""

from __future__ import annotations

from typing import Any, cast

import pytest

from backend.engine_channel import EngineChannel
from backend.engine_process import IDLE_SECONDS, TIDYING_SECONDS, serve
from backend.events import EngineStatistics
from backend.measured_rank import MeasuredRank
from backend.messages import StepOutput, Submit, ToEngine
from backend.request import Request
from backend.standing import Standing

OUTPUT = StepOutput((), (), EngineStatistics())


class ScriptEndedError(Exception):
    """Nothing more is scripted."""


class ScriptedChannel:
    """Gives what is scripted, one thing a wait; None is a wait without a message."""

    def __init__(self, *script: ToEngine | None) -> None:
        self._script = list(script)
        self.waits: list[float] = []
        self.sent: list[StepOutput] = []

    def receive(self, seconds: float) -> ToEngine | None:
        if not self._script:
            raise ScriptEndedError
        self.waits.append(seconds)
        return self._script.pop(0)

    def receive_now(self) -> None:
        return None

    def send(self, message: StepOutput) -> None:
        self.sent.append(message)

    def step_begins(self) -> None: ...

    def step_ends(self) -> None: ...


class TidyingEngine:
    """Has `untidy` things to put away, and one step of work a request."""

    def __init__(self, untidy: int) -> None:
        self.untidy, self.work, self.calls = untidy, 0, ""

    @property
    def has_work(self) -> bool:
        return self.work > 0

    def submit(self, request: Request) -> None:
        self.work += 1

    def cancel(self, request_id: str) -> None: ...

    def step(self) -> StepOutput:
        self.work -= 1
        self.calls += "s"
        return OUTPUT

    def idle(self) -> StepOutput | None:
        self.calls += "i"
        self.untidy -= 1
        return OUTPUT if self.untidy >= 0 else None

    def statistics(self) -> EngineStatistics:
        return OUTPUT.statistics

    def standing(self) -> Standing | None:
        return None

    def measure(self) -> tuple[MeasuredRank, ...]:
        return ()


def serve_script(engine: TidyingEngine, *script: Any) -> ScriptedChannel:
    channel = ScriptedChannel(*script)
    with pytest.raises(ScriptEndedError):
        serve(engine, cast(EngineChannel, channel))
    return channel


def test_idle_time_comes_after_a_second_and_then_soon_while_there_is_something_to_do():
    engine = TidyingEngine(untidy=2)
    channel = serve_script(engine, None, None, None, None)
    assert channel.waits == [IDLE_SECONDS, TIDYING_SECONDS, TIDYING_SECONDS, IDLE_SECONDS]
    assert (engine.calls, len(channel.sent)) == ("iiii", 2)


def test_work_comes_before_tidying_up():
    engine = TidyingEngine(untidy=5)
    work = Submit(Request(id="a", prompt=(1,)))
    channel = serve_script(engine, None, work, None)
    assert engine.calls == "isi"
    assert channel.waits == [IDLE_SECONDS, TIDYING_SECONDS, IDLE_SECONDS]
