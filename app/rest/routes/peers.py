"""`/peers`: the machines that stages can be put on, for faces that show them."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Response
from msgspec import json

from app.peer_news import peers_now
from app.rest.context import RestContext


def peers_router(context: RestContext) -> APIRouter:
    router = APIRouter()

    @router.get("/peers", response_class=Response)
    async def peers() -> Response:
        """This machine and its peers, with the stages that this server's engines have there."""
        plans = {name: plan for name, served in context.models if (plan := served.engine.plan) is not None}
        return Response(json.encode(await asyncio.to_thread(peers_now, plans)), media_type="application/json")

    return router
