"""`/peers` tells where stages are now, and not where they were planned."""

from __future__ import annotations

from app.rest.routes.peers import as_it_stands
from backend.engine_client import RankStatus
from backend.layer_span import LayerSpan
from backend.planner.plan import Stage
from tests.fakes.plans import plan as make_plan


def test_a_stage_that_went_elsewhere_is_shown_there() -> None:
    stages = (Stage("", "alpha", LayerSpan(0, 2, 4, 0, 2), 1), Stage("b", "beta", LayerSpan(2, 4, 4, 2, 4), 1))
    plan = make_plan(stages=stages)
    now = as_it_stands(plan, (RankStatus(0, 1, "cpu", "ready", 1, 0, ""), RankStatus(1, 2, "cpu", "ready", 1, 1, "c")))
    assert [stage.peer for stage in now.stages] == ["", "c"]
    assert as_it_stands(plan, ()) == plan
