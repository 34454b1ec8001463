"""What stages take, and whether another machine has room for one: the same layers, the same pages, other devices."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from backend.engine_settings import EngineSettings
from backend.planner.plan import Plan
from backend.planner.stage_plan import ranks_of
from pipeline_ext.placement import Placeable, place
from pipeline_ext.stage_needs import replacement, stage_needs
from tests.fakes.fit_models import FILES, known
from tests.fakes.machines import GIB, consumer, cpu_machine, dgx_h100, gpu_machine, unequal
from tests.fakes.models import STARTER

GEMMA = known("gemma").facts
HEAD = Placeable("", "head", cpu_machine())
ALPHA = Placeable("a", "alpha", cpu_machine())


def placed(*machines: Placeable, **options: Any) -> Plan:
    return place(EngineSettings(files=FILES, **options), STARTER, machines)


PLAN = placed(HEAD, ALPHA, pipeline_stages=2, kv_pool=2 * GIB)


def test_needs_are_the_plans_own_terms() -> None:
    needs = stage_needs(PLAN)
    assert [need.span for need in needs] == [stage.span for stage in PLAN.stages]
    for number, need in enumerate(needs):
        (rank,) = ranks_of(PLAN, number)
        terms = {term.name: term.bytes for term in rank.memory}
        assert not need.cuda
        assert need.ranks[0].weights == terms["weights"]
        assert need.ranks[0].pages == PLAN.pages * rank.page_bytes
        assert need.total == sum(terms.values())
    assert stage_needs(placed(HEAD)) == ()


def test_a_spare_machine_takes_the_stage_over_as_it_was() -> None:
    spare = Placeable("s", "spare", cpu_machine())
    plan = replacement(PLAN, 1, spare, STARTER)
    assert plan is not None
    assert plan.stages[0] == PLAN.stages[0]
    assert plan.stages[1] == replace(PLAN.stages[1], peer="s", name="spare")
    assert plan.ranks == PLAN.ranks
    assert (plan.pages, plan.page_bytes) == (PLAN.pages, PLAN.page_bytes)
    assert plan.reasons[-1] == "Stage 2 has moved from alpha to spare."


@pytest.mark.parametrize("stage", [0, 1])
def test_room_is_counted_to_the_byte(stage: int) -> None:
    need = stage_needs(PLAN)[stage].total
    for short, fits in ((0, True), (1 << 20, False)):
        spare = Placeable("s", "spare", cpu_machine(int(need / 0.9) + 2 - short))
        assert (replacement(PLAN, stage, spare, STARTER) is not None) == fits


def test_a_machine_that_has_a_stage_already_must_have_room_for_both() -> None:
    needs = stage_needs(PLAN)
    both = int(sum(need.total for need in needs) / 0.9) + 2
    large = replace(HEAD, machine=cpu_machine(both))
    plan = replacement(PLAN, 1, large, STARTER)
    assert plan is not None
    assert [stage.peer for stage in plan.stages] == ["", ""]
    assert plan.stages[1].threads == 1
    small = replace(HEAD, machine=cpu_machine(both - (1 << 20)))
    assert replacement(PLAN, 1, small, STARTER) is None
    # Read while the other stage was there, what is free is free.
    assert replacement(PLAN, 1, small, STARTER, fresh=True) is not None


def test_the_machine_that_lost_it_may_have_it_again() -> None:
    plan = replacement(PLAN, 1, ALPHA, STARTER)
    assert plan is not None
    assert (plan.stages, plan.ranks) == (PLAN.stages, PLAN.ranks)


def test_a_stage_of_gpus_takes_as_many_as_hold_it() -> None:
    other = Placeable("o", "other", unequal())
    machines = Placeable("", "head", gpu_machine(*consumer(1))), other
    plan = place(EngineSettings(files=FILES), GEMMA, machines)
    number = next(number for number, stage in enumerate(plan.stages) if stage.name == "other")
    spare = Placeable("s", "spare", dgx_h100(4))
    moved = replacement(plan, number, spare, GEMMA)
    assert moved is not None
    assert moved.stages[number].peer == "s"
    assert [rank.rank for rank in moved.ranks] == list(range(len(moved.ranks)))
    assert sum(stage.ranks for stage in moved.stages) == len(moved.ranks)
    assert moved.pages == plan.pages
    assert stage_needs(moved)[number].cuda
    # The head's only GPU has its own stage; a processor of 20 GiB has no room.
    assert replacement(plan, number, machines[0], GEMMA) is None
    assert replacement(plan, number, ALPHA, GEMMA) is None


def test_no_second_stage_on_the_same_gpu() -> None:
    head, alpha = (Placeable(name[:-4], name, dgx_h100(1)) for name in ("head", "alpha"))
    plan = place(EngineSettings(files=FILES, pipeline_stages=2, kv_pool=GIB), STARTER, (replace(head, id=""), alpha))
    number = next(number for number, stage in enumerate(plan.stages) if stage.name == "alpha")
    assert replacement(plan, number, replace(head, id=""), STARTER) is None


def test_formats_that_a_machine_does_not_multiply_are_no_replacement() -> None:
    gpus = [Placeable(name, name or "head", dgx_h100(1)) for name in ("", "a")]
    plan = place(EngineSettings(files=FILES, pipeline_stages=2, weights="fp8", kv_pool=GIB), STARTER, gpus)
    assert replacement(plan, 1, Placeable("s", "spare", cpu_machine()), STARTER) is None
    assert replacement(plan, 1, Placeable("s", "spare", gpu_machine(*consumer(1))), STARTER) is None
    assert replacement(plan, 1, Placeable("s", "spare", dgx_h100(1)), STARTER) is not None
