"""`/cache`: what the KV cache holds, tier by tier, for faces that draw it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from msgspec import json, structs

from app.rest.context import RestContext
from app.rest.served import ServedEngine


def cache_router(context: RestContext) -> APIRouter:
    router = APIRouter()

    @router.get("/cache", response_class=Response)
    async def cache() -> Response:
        """Each engine's figures, and its device pages as digits: 0 free, 1 cached, 2 used, 3 shared."""
        body = {"engines": [_engine(name, served) for name, served in context.models]}
        return Response(json.encode(body), media_type="application/json")

    return router


def _engine(name: str, served: ServedEngine) -> dict[str, Any]:
    """`map` is null until the engine has told; `pages_per_cell` pages make one of its digits."""
    found = served.engine.cache_map()
    cells = found and {"pages_per_cell": found.pages_per_cell, "device": "".join(str(cell) for cell in found.device)}
    return {"model": name, "statistics": structs.asdict(served.engine.statistics().cache), "map": cells}
