"""Copies of a model: each whole, on machines of its own, alike for clients; too few machines are counted."""

from __future__ import annotations

from typing import Any

import pytest

from backend.engine_settings import EngineSettings
from backend.errors import SettingError
from backend.planner.model_facts import ModelFacts
from backend.planner.plan import Plan
from pipeline_ext.peer import PeerLink
from pipeline_ext.placement import Placeable, place
from pipeline_ext.replicas import place_replicas
from tests.fakes.fit_models import FILES, known
from tests.fakes.machines import GIB, cpu_machine
from tests.fakes.models import STARTER

LAN = PeerLink(200e-6, 1.1e9)
HEAD = Placeable("", "head", cpu_machine())
EIGHT = known("8b").facts


def peer(name: str, memory: int = 20) -> Placeable:
    return Placeable(name[0], name, cpu_machine(memory * GIB), LAN)


def copies(facts: ModelFacts, machines: list[Placeable], replicas: int | None, **options: Any) -> tuple[Plan, ...]:
    return place_replicas(EngineSettings(files=FILES, **options), facts, machines, replicas)


def where(plans: tuple[Plan, ...]) -> list[list[str]]:
    return [[stage.peer for stage in plan.stages] or [""] for plan in plans]


def test_one_copy_is_what_place_makes() -> None:
    machines = [HEAD, peer("alpha")]
    assert copies(STARTER, machines, 1) == (place(EngineSettings(files=FILES), STARTER, machines),)


def test_a_second_machine_holds_a_second_copy() -> None:
    first, second = copies(STARTER, [HEAD, peer("alpha")], 2)
    assert first.stages == ()
    assert (second.pipeline_stages, len(second.stages)) == (1, 1)
    assert (second.stages[0].peer, second.stages[0].span.of) == ("a", 30)
    assert second.stages[0].span.begins
    assert second.stages[0].span.ends
    assert "This is copy 2 of 2, on alpha." in second.reasons


def test_auto_takes_all_that_hold_one() -> None:
    assert where(copies(EIGHT, [HEAD, peer("alpha"), peer("beta", 4), peer("gamma")], None)) == [[""], ["a"], ["g"]]


def test_copies_may_have_stages_and_share_no_machine() -> None:
    machines = [Placeable("", "head", cpu_machine(12 * GIB)), *(peer(name, 12) for name in ("alpha", "beta", "gamma"))]
    found = where(copies(EIGHT, machines, 2))
    assert [len(ids) for ids in found] == [2, 2]
    assert not set(found[0]) & set(found[1])


def test_copies_are_alike_for_clients() -> None:
    first, second = copies(EIGHT, [Placeable("", "head", cpu_machine(40 * GIB)), peer("alpha", 26)], 2)
    assert first.max_context == second.max_context
    assert (first.dtype, first.weight_format, first.kv_format) == (second.dtype, second.weight_format, second.kv_format)
    assert any("as long as the smallest holds" in reason for reason in first.reasons)


def test_too_few_machines_are_counted() -> None:
    with pytest.raises(SettingError) as caught:
        copies(EIGHT, [HEAD, peer("alpha"), peer("beta", 4)], 3)
    assert "They hold 2: copy 1 on this machine; copy 2 on alpha." in caught.value.why
    assert "beta cannot hold another: The model does not fit" in caught.value.why
    with pytest.raises(SettingError, match="No machine is left"):
        copies(EIGHT, [HEAD], 2)
