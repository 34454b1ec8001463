"""`shardwise models`: the models that are installed here."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from app.commands.progress import megabytes


def models(
    *, as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead of a table.")] = False
) -> None:
    """List the installed models."""
    import msgspec

    from backend.library.catalogue import catalogue

    installed = catalogue()
    if as_json:
        print(msgspec.json.encode(installed).decode())
        return
    if not installed:
        print("No model is installed. `shardwise pull starter` fetches a small one (93 MB).", file=sys.stderr)
        return
    width = max(len(model.name) for model in installed)
    for model in installed:
        print(f"{model.name:<{width}}  {megabytes(model.bytes):>10}  {model.format:<11}  {model.architecture}")
