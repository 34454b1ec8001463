"""What counts as dead: silence, a hung step; and what does not: a start, a pause of this process itself."""

from __future__ import annotations

from backend.messages import Heartbeat, Ready
from backend.planner.plan import HostedLayers, Plan
from backend.vital_signs import VitalLimits, VitalSigns
from tests.fakes.plans import plan

LIMITS = VitalLimits(tick=0.25, silence=2.5, starting_silence=120.0, step=30.0, slow_step=300.0, step_factor=10.0)


def ready_signs(device: str = "cuda:0", made: Plan | None = None) -> VitalSigns:
    signs, made = VitalSigns(LIMITS), made or plan()
    signs.heard(Ready(plan=made, max_context=1, vocabulary=1, weights_bytes=(1,), rank_pids=(1,), devices=(device,)))
    return signs


def ticks_until_complaint(signs: VitalSigns, elapsed: float = 0.25) -> int:
    return next(count for count in range(1, 10_000) if signs.check(elapsed))


def test_silence_is_death_within_three_seconds_once_ready_and_forgiven_while_starting() -> None:
    assert ticks_until_complaint(ready_signs()) * 0.25 <= 3.0
    assert ticks_until_complaint(VitalSigns(LIMITS)) * 0.25 > 100


def test_a_message_is_a_sign_of_life() -> None:
    signs = ready_signs()
    for _ in range(100):
        assert signs.check(0.25) is None
        signs.heard(Heartbeat())


def test_our_own_standstill_is_not_the_engines() -> None:
    assert ready_signs().check(3600.0) is None


def test_a_step_is_hung_past_its_limit() -> None:
    signs = ready_signs()
    signs.heard(Heartbeat(29.0))
    assert signs.check(0.25) is None
    signs.heard(Heartbeat(31.0))
    assert "step" in (signs.check(0.25) or "")


def test_steps_known_to_be_long_and_steps_that_may_be_get_more_time() -> None:
    signs = ready_signs()
    signs.heard(Heartbeat(20.0))
    signs.heard(Heartbeat(0.0))
    signs.heard(Heartbeat(150.0))
    assert signs.check(0.25) is None
    on_cpu = ready_signs("cpu")
    on_cpu.heard(Heartbeat(250.0))
    assert on_cpu.check(0.25) is None
    streaming = ready_signs(made=plan(hosted=HostedLayers((0, 1, 2), 3, 1, 1, 1, 0.8, 35.0)))
    streaming.heard(Heartbeat(35.0))
    assert streaming.check(0.25) is None
