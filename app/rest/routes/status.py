"""`/health`, `/version` and `/metrics`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from msgspec import json
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from app.rest.auth import on_loopback
from app.rest.context import RestContext
from backend.engine_client import EngineStatus
from backend.exit_status import without_pids

# The main engine is away, and the fallback model answers new requests for it.
DEGRADED = "degraded"


def status_router(context: RestContext) -> APIRouter:
    router = APIRouter()

    @router.get("/health", response_class=Response)
    async def health(request: Request) -> Response:
        """200 while requests are served, else 503; the body says what the engines do.

        The main engine's state is the server's, but for "degraded": then `fallback` names the model that answers.
        """
        own = on_loopback(request)
        engines = [_engine(served.engine.status(), own) for _, served in context.models]
        stands_in = context.models.stands_in
        status = DEGRADED if stands_in else engines[0]["state"] if engines else "failed"
        body = {"status": status, **({"fallback": stands_in} if stands_in else {}), "engines": engines}
        served = status in ("ready", DEGRADED)
        return Response(json.encode(body), 200 if served else 503, media_type="application/json")

    @router.get("/version")
    async def version() -> dict[str, str]:
        """This server's version."""
        return {"version": context.version}

    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Counters and histograms in Prometheus' text format."""
        return Response(context.metrics.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    return router


def _engine(status: EngineStatus, own: bool) -> dict[str, Any]:
    """One engine; process ids only for callers on this machine."""
    ranks = [
        {
            "rank": rank.rank,
            **({"pid": rank.pid} if own else {}),
            "device": rank.device,
            "state": rank.state,
            "weights_bytes": rank.weights_bytes,
            "stage": rank.stage,
            "peer": rank.peer,
        }
        for rank in status.ranks
    ]
    stages = [
        {"stage": s.stage, "seconds": s.seconds, "done": s.done, "total": s.total, "finished": s.finished}
        for s in status.stages
    ]
    return {
        "model": status.model,
        "state": status.state,
        **({"pid": status.pid} if own else {}),
        "ranks": ranks,
        "stages": stages,
        "restarts": status.restarts,
        "error": status.error if own else without_pids(status.error),
        **({"replicas": [_engine(one, own) for one in status.replicas]} if status.replicas else {}),
        "trouble": status.trouble if own else without_pids(status.trouble),
    }
