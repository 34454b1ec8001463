"""`/peers`: the machines that stages can be put on, for faces that show them."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Response
from msgspec import json
from msgspec.structs import replace

from app.peer_news import peers_now
from app.rest.context import RestContext
from backend.engine_client import RankStatus
from backend.planner.plan import Plan


def as_it_stands(plan: Plan, ranks: tuple[RankStatus, ...]) -> Plan:
    """The Plan with each stage on the machine that has it now: a lost one's goes to another, and the Plan stays."""
    homes = {rank.stage: rank.peer for rank in ranks}
    stages = tuple(replace(stage, peer=homes.get(number, stage.peer)) for number, stage in enumerate(plan.stages))
    return replace(plan, stages=stages)


def peers_router(context: RestContext) -> APIRouter:
    router = APIRouter()

    @router.get("/peers", response_class=Response)
    async def peers() -> Response:
        """This machine and its peers, with the stages that this server's engines have there."""
        engines = [(name, served.engine) for name, served in context.models]
        plans = {name: as_it_stands(engine.plan, engine.status().ranks) for name, engine in engines if engine.plan}
        return Response(json.encode(await asyncio.to_thread(peers_now, plans)), media_type="application/json")

    return router
