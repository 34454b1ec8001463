"""`/plan`: what each engine was planned to take of its devices, beside what it takes: for faces that compare them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from msgspec import json, structs

from app.rest.auth import on_loopback
from app.rest.context import RestContext
from app.rest.errors import ApiError
from app.rest.served import ServedEngine
from backend.planner.plan import Plan

_SERVES = ("ready", "draining")


def plan_router(context: RestContext) -> APIRouter:
    router = APIRouter()

    @router.get("/plan", response_class=Response)
    async def plan(request: Request) -> Response:
        """The Plan in force of each engine that serves, and the memory of its ranks by the Plan's terms, as it is now.

        503 while the main engine is starting.
        """
        found = [(name, served, made) for name, served in context.models if (made := _plan_of(served)) is not None]
        main, first = next(iter(context.models))
        if not found or found[0][0] != main:
            state = first.engine.status().state
            raise ApiError(
                f"The engine of {main} is {state}",
                status=503,
                code="engine_unavailable",
                why="There is no memory to measure before it serves; /health tells how far it is.",
            )
        own = on_loopback(request)
        body = {"engines": [await _engine(name, served, made, own) for name, served, made in found]}
        return Response(json.encode(body), media_type="application/json")

    return router


def _plan_of(served: ServedEngine) -> Plan | None:
    return served.engine.plan if served.engine.status().state in _SERVES else None


async def _engine(name: str, served: ServedEngine, plan: Plan, own: bool) -> dict[str, Any]:
    """One engine; folders of this machine only for callers on it."""
    shown = plan if own else structs.replace(plan, cache_dir="")
    return {"model": name, "plan": shown, "measured": await served.engine.measure()}
