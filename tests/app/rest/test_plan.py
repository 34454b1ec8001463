"""`/plan`: the Plan and the ranks' memory as clients read them back; keys, and what is said before there is any."""

from __future__ import annotations

import httpx
import pytest

from app.plan_view import EnginePlan, read_plans
from backend.measured_rank import MeasuredRank
from backend.planner.plan import MemoryTerm, Rank
from tests.fakes.plans import plan

PLAN = plan(
    model="fake",
    ranks=(Rank(0, "cpu", (MemoryTerm("weights", 7), MemoryTerm("kv", 8))),),
    cache_dir="/home/someone/cache",
)
MEASURED = (MeasuredRank(0, "cpu", (MemoryTerm("weights", 9), MemoryTerm("kv", 8)), 17, 3, 11),)


async def test_the_route_gives_the_plan_beside_what_is_measured(open_endpoint) -> None:
    async with open_endpoint(plan=PLAN, measured=MEASURED) as endpoint:
        answer = await endpoint.http.get("/plan")
        assert answer.status_code == 200
        (engine,) = answer.json()["engines"]
        assert engine["model"] == "fake"
        assert engine["plan"]["ranks"][0]["memory"] == [{"name": "weights", "bytes": 7}, {"name": "kv", "bytes": 8}]
        (rank,) = engine["measured"]
        assert (rank["rank"], rank["device"], rank["resident"]) == (0, "cpu", 17)
        assert rank["terms"] == [{"name": "weights", "bytes": 9}, {"name": "kv", "bytes": 8}]
        assert read_plans(answer.content) == (EnginePlan("fake", PLAN, MEASURED),)
        endpoint.keys.create("someone")
        assert (await endpoint.http.get("/plan")).status_code == 401


async def test_folders_are_for_callers_on_this_machine(open_endpoint) -> None:
    async with open_endpoint(plan=PLAN, measured=MEASURED) as endpoint:
        transport = httpx.ASGITransport(endpoint.app, client=("192.168.0.7", 5))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            answer = await http.get("/plan")
        assert "someone" not in answer.text
        assert read_plans(answer.content)[0].plan.pages == PLAN.pages


@pytest.mark.parametrize("state", ["starting", "restarting", "failed"])
async def test_before_it_serves_there_is_nothing_to_measure(open_endpoint, state: str) -> None:
    # A restarting engine still has the Plan of the one that died.
    async with open_endpoint(state=state, plan=None if state == "starting" else PLAN) as endpoint:
        answer = await endpoint.http.get("/plan")
        assert answer.status_code == 503
        error = answer.json()["error"]
        assert error["message"].splitlines()[0] == f"The engine of fake is {state}"
        assert error["code"] == "engine_unavailable"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"engines": [{"model": "a", "plan": {}, "measured": []}]}',
        b'{"engines": [{"model": "a", "plan": null, "measured": []}]}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_plan_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read_plans(body)
