"""Health: a server's own word on its state, as clients read it from `/health`; cleaned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from app.text_safety import clean, clean_line
from backend.engine_client import StageTime


@dataclass(frozen=True, slots=True)
class RankHealth:
    """One rank: `peer` is the id of its machine, empty for the server's own."""

    stage: int
    peer: str
    state: str


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """One engine of `/health`: `error` is what a person should read when `state` is failed, `trouble` what is being
    mended while it serves."""

    model: str
    state: str
    error: str
    stages: tuple[StageTime, ...]
    trouble: str = ""
    ranks: tuple[RankHealth, ...] = ()


@dataclass(frozen=True, slots=True)
class Health:
    """`/health`: status is starting, ready, restarting, draining or failed, or degraded: then the main engine is away,
    and the model `fallback` answers for it."""

    status: str
    engines: tuple[EngineHealth, ...]
    fallback: str = ""

    @property
    def ready(self) -> bool:
        return self.status in ("ready", "degraded")


def read_health(body: dict[str, Any]) -> Health:
    """The decoded body of `/health`; raises ValueError, TypeError, KeyError or AttributeError for anything else."""
    engines = tuple(_engine(each) for each in body["engines"])
    return Health(clean_line(body["status"]), engines, clean_line(str(body.get("fallback") or ""), 200))


def _engine(body: dict[str, Any]) -> EngineHealth:
    stages = tuple(
        StageTime(
            clean_line(str(each["stage"])),
            float(each["seconds"]),
            int(each["done"]),
            int(each["total"]),
            bool(each["finished"]),
        )
        for each in body.get("stages") or ()
    )
    ranks = tuple(
        RankHealth(int(each.get("stage") or 0), clean_line(str(each.get("peer") or "")), clean_line(str(each["state"])))
        for each in body.get("ranks") or ()
    )
    return EngineHealth(
        clean_line(str(body["model"]), 4096),
        clean_line(str(body["state"])),
        clean(str(body.get("error") or "")),
        stages,
        clean_line(str(body.get("trouble") or "")),
        ranks,
    )
