"""What the app asks a server by the way: where the server does not tell, the app goes on without it."""

from __future__ import annotations

from app.cache_view import CacheView
from app.client import ShardwiseClient
from app.tui.fit.measured import summary
from backend.errors import ShardwiseError


async def cache_of(client: ShardwiseClient) -> CacheView | None:
    """What its cache holds; None where it does not tell: an older server has no such route."""
    try:
        return await client.cache()
    except ShardwiseError:
        return None


async def memory_of(client: ShardwiseClient) -> str:
    """How the main engine's memory came out, in a line; empty where it does not tell."""
    try:
        plans = await client.plan()
    except ShardwiseError:
        return ""
    return summary(plans[0].plan.ranks, plans[0].measured) if plans else ""
