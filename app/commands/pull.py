"""`shardwise pull`: fetch a model, check it, and show how far the download is."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from app.commands.progress import megabytes, shown_progress


def pull(
    model: Annotated[str, typer.Argument(help="'starter', org/name[@revision], or org/name:file.gguf.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print progress and result as lines of JSON.")] = False,
) -> None:
    """Download a model; one that is here already is only checked."""
    from backend.library.checks import check
    from backend.library.resolve import pull as pull_model

    with shown_progress(model, as_json) as on_progress:
        files = pull_model(model, on_progress)
    header = check(files)
    place = files.weights[0] if files.format == "gguf" else files.folder
    if as_json:
        result = {"model": model, "format": files.format, "bytes": files.bytes, "parameters": header.parameters}
        print(json.dumps(result | {"architecture": header.architecture, "path": place}))
    else:
        print(f"{model}: {header.architecture}, {header.parameters / 1e6:,.0f} M parameters, {megabytes(files.bytes)}")
        print(f"at {place}")
