"""What the app asks a server by the way: where the server does not tell, the app goes on without it."""

from __future__ import annotations

from app.cache_view import CacheView
from app.client import ShardwiseClient
from app.tui.daemon_thread import in_daemon_thread
from app.tui.dependencies import PeersOutside
from app.tui.fit.measured import summary
from app.tui.peers.look import PeersLook
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


async def peers_of(client: ShardwiseClient) -> PeersLook:
    """The machines that a server stands on, with its word on its engines. Raises ShardwiseError."""
    return PeersLook(await client.peers(), await client.health())


async def peers_here(outside: PeersOutside) -> PeersLook:
    """The machines that this one's hub knows. Raises ShardwiseError."""
    return PeersLook(await in_daemon_thread(outside.view))
