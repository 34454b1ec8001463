"""apart: whether computing prompts and answers on devices of their own would help those who ask. Pure.

It shortens the longest pauses between tokens, not the usual ones: prompts no longer take turns with answers on the same
devices. Tokens a second do not rise; each engine has half of the devices.
"""

from __future__ import annotations

from collections.abc import Sequence

from backend.planner.fit.candidate import Question
from backend.planner.fit.report import FitPlan
from backend.planner.timing.pace import pace
from backend.planner.units import human_seconds

# Below these, prompts are too few or too short for many tokens to wait for them.
_LEAST_USERS, _LEAST_PROMPT = 4, 2048
# How much longer than usual a pause has to be for people to see it.
_NOTICED = 3.0


def apart(asked: Question, plans: Sequence[FitPlan]) -> str:
    """A sentence with what it would be about; empty where it would not help, or the devices do not divide."""
    ask = asked.ask
    gpus = asked.cluster.machines[0].gpus
    if ask.engine != "shardwise" or ask.goal != "latency":
        return ""
    if ask.users < _LEAST_USERS or ask.prompt < _LEAST_PROMPT or len({(gpu.name, gpu.total) for gpu in gpus}) != 1:
        return ""
    half = max((plan for plan in plans if _on_half(plan, len(gpus) // 2)), key=lambda plan: plan.tensor, default=None)
    if half is None or half.speed is None:
        return ""
    part = min(1.0, pace(ask.engine).step_tokens / ask.prompt)
    wait, usual = half.speed.first_token.likely * part, half.speed.token.likely
    if wait < _NOTICED * usual:
        return ""
    return (
        f"With {ask.users} users and prompts of {ask.prompt:,} tokens, a token may wait {human_seconds(wait)} for a "
        f"step of somebody's prompt, instead of {human_seconds(usual)}. --disaggregate computes prompts on half of the "
        "GPUs and answers on the others: such pauses go, and tokens a second do not rise."
    )


def _on_half(plan: FitPlan, gpus: int) -> bool:
    """Whether half of the first machine's GPUs run it."""
    one = plan.stages == plan.replicas == 1
    return one and plan.runnable and plan.verdict.fits and plan.devices[0].gpu is not None and plan.tensor <= gpus
