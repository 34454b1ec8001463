"""`shardwise stop`: ends servers that run in the background, or in another terminal, after they have drained."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from app.background import ServerRecord, running_servers, stop_server
from backend.errors import ShardwiseError


def stop(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="Stop only the server of this model.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Stop every server of yours, and the hub of peers.")] = False,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for running answers.")] = 60,
) -> None:
    """Stop the server that runs in the background. Running answers are finished first."""
    records = [record for record in running_servers() if model is None or record.model == model]
    hub = every and _stop_hub()
    if not records:
        if hub:
            return
        raise ShardwiseError("No server is running" + (f" for {model}" if model else ""))
    if len(records) > 1 and not every:
        named = ", ".join(f"{record.model} at {record.url}" for record in records)
        raise ShardwiseError("More than one server is running", f"{named}.", "Name a model, or give --all.")
    asyncio.run(_stop(records, wait))


def _stop_hub() -> bool:
    """Also the hub of the peers, which runs in the background as servers do: whether there was one."""
    from pipeline_ext.hub_start import stop_hub

    if not stop_hub():
        return False
    typer.echo("Stopped the hub of the peers")
    return True


async def _stop(records: list[ServerRecord], wait: float) -> None:
    results = await asyncio.gather(*(stop_server(record.pid, wait) for record in records))
    for record, stopped in zip(records, results, strict=True):
        if not stopped:
            raise ShardwiseError(
                f"The server of {record.model} is still finishing answers",
                f"It was told to stop {wait:.0f} s ago (process {record.pid}).",
                "Run shardwise stop once more to stop it at once.",
            )
        typer.echo(f"Stopped {record.model} at {record.url}")
