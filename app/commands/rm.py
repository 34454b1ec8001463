"""`shardwise rm`: delete an installed model."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from app.commands.progress import megabytes


def rm(
    model: Annotated[str, typer.Argument(help="A name that `shardwise models` lists.")],
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; in a pipe nothing is asked anyway.")] = False,
) -> None:
    """Delete an installed model; folders and files of your own are never touched."""
    from backend.library.catalogue import remove

    if not yes and sys.stdin.isatty() and not typer.confirm(f"Delete {model}?"):
        return
    print(f"Deleted {model}: {megabytes(remove(model))} freed.")
