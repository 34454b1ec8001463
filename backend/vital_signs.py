"""VitalSigns: judges from what a process of ours sends whether it is alive, frozen or hung."""

from __future__ import annotations

from dataclasses import dataclass

from backend.messages import FromEngine, Heartbeat, Ready


@dataclass(frozen=True, slots=True)
class VitalLimits:
    """What counts as dead, in seconds.

    Attributes:
        tick: how often somebody looks.
        silence: no message for this long, the heartbeat's included.
        starting_silence: the same before Ready: imports and loading may hold the interpreter's lock for long.
        step: a step may take this long in any case.
        slow_step: the same where a rank computes on a CPU, where a chunk of a long prompt takes its time, or waits for
            layers from host memory.
        step_factor: beyond that, a step is hung when it takes this many times the longest one before.
    """

    tick: float = 0.25
    silence: float = 2.5
    starting_silence: float = 120.0
    step: float = 30.0
    slow_step: float = 300.0
    step_factor: float = 10.0


class VitalSigns:
    """Of one process, an engine's or a rank's; fed with each message and asked each tick."""

    def __init__(self, limits: VitalLimits) -> None:
        self._limits = limits
        self._silent = 0.0
        self._silence_limit = limits.starting_silence
        self._step_limit = limits.step
        self._step = 0.0
        self._longest_step = 0.0

    def heard(self, message: FromEngine) -> None:
        """An engine has sent this."""
        self._silent = 0.0
        match message:
            case Ready(devices=devices, plan=plan):
                self.ready("cpu" in devices or plan.hosted is not None)
            case Heartbeat(step_seconds=step):
                self.beat(step)

    def ready(self, slow: bool) -> None:
        """It has started: from now on it must not be silent for long.

        slow: whether a rank computes on a CPU, or has layers in host memory.
        """
        self._silent = 0.0
        self._silence_limit = self._limits.silence
        self._step_limit = self._limits.slow_step if slow else self._limits.step

    def beat(self, step_seconds: float) -> None:
        """Its heart has beaten; its step has been running for so long, 0 between steps."""
        self._silent = 0.0
        if step_seconds < self._step:
            self._longest_step = max(self._longest_step, self._step)
        self._step = step_seconds

    def check(self, elapsed: float) -> str | None:
        """What is wrong, `elapsed` seconds after the last check; None while nothing is.

        A tick that comes late means that this process itself stood still (a laptop's sleep, a debugger, a
        swap storm) with the engine's messages unread, so at most two ticks count as silence.
        """
        self._silent += min(elapsed, 2 * self._limits.tick)
        if self._silent > self._silence_limit:
            return f"it gave no sign of life for {self._silent:.1f} s"
        limit = max(self._step_limit, self._limits.step_factor * self._longest_step)
        if self._step > limit:
            return f"a step has been running for {self._step:.0f} s, at most {limit:.0f} s are expected"
        return None
