"""`shardwise bench`: load on a running server, with the figures the field uses. Measuring is `app.load`'s."""

from __future__ import annotations

import asyncio
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from app.load.figures import over_runs
from app.load.prompts import Counter
from app.load.report import table
from app.load.run import Runs, run_workloads
from app.load.server import LoadServer
from app.load.workload import STANDARD, Workload
from backend.errors import SettingError


class EndpointChoice(StrEnum):
    """Which of OpenAI's routes the load goes to."""

    completions = "completions"
    chat = "chat"


_NAMES = tuple(workload.name for workload in STANDARD)


def bench(
    workloads: Annotated[
        list[str] | None, typer.Argument(help=f"Which of {', '.join(_NAMES)}; all of them by default.")
    ] = None,
    *,
    url: Annotated[str, typer.Option(help="The server's address.")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="The model; the server's first by default.")] = None,
    key: Annotated[str | None, typer.Option(help="API key, where the server wants one.")] = None,
    endpoint: Annotated[
        EndpointChoice, typer.Option(help="Which route the load goes to.")
    ] = EndpointChoice.completions,
    runs: Annotated[int, typer.Option(min=1, help="Runs of each workload; figures are medians.")] = 3,
    seed: Annotated[int, typer.Option(help="Chooses the prompts; a server sees each seed cold once.")] = 100,
    concurrency: Annotated[int | None, typer.Option(min=1, help="A workload of your own: requests in flight.")] = None,
    requests: Annotated[int, typer.Option(min=1, help="With --concurrency: requests in all.")] = 48,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="With --concurrency: each prompt's own.")] = 128,
    output_tokens: Annotated[int, typer.Option(min=1, help="With --concurrency: each answer's.")] = 128,
    shared_prefix_tokens: Annotated[
        int, typer.Option(min=0, help="With --concurrency: at the start of every prompt.")
    ] = 0,
    tokenizer: Annotated[
        Path | None, typer.Option(help="A tokenizer.json to count with, instead of the server's /tokenize.")
    ] = None,
    warm_up: Annotated[bool, typer.Option(help="Send an unmeasured load first.")] = True,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds without a byte before a request fails.")] = 600,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Put load on a running server and measure throughput and latency."""
    chosen = _chosen(workloads or [])
    if concurrency is not None:
        own = Workload(
            name="own",
            concurrency=concurrency,
            requests=requests,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            shared_prefix_tokens=shared_prefix_tokens,
        )
        chosen = (*chosen, own) if workloads else (own,)

    async def drive() -> tuple[Runs, str, bool]:
        server = LoadServer(url, model=model, endpoint=endpoint.value, key=key, timeout=timeout)
        try:
            results = await run_workloads(
                server,
                chosen,
                runs=runs,
                seed=seed,
                warm_up=warm_up,
                count=_counter(tokenizer),
                progress=_progress,
            )
            return results, server.model, server.length_forced
        finally:
            await server.close()

    results, served, forced = asyncio.run(drive())
    if json:
        print(_as_json(results, chosen, served, forced))
    else:
        print(table(results))
        if not forced:
            print("The server does not let one force the length of answers.")
    if any(run.failed for runs_of_one in results.values() for run in runs_of_one):
        raise typer.Exit(1)


def _chosen(names: list[str]) -> tuple[Workload, ...]:
    unknown = [name for name in names if name not in _NAMES]
    if unknown:
        raise SettingError(f"No workload is called {unknown[0]}.", "", f"There are {', '.join(_NAMES)}.")
    return tuple(workload for workload in STANDARD if not names or workload.name in names)


def _counter(tokenizer: Path | None) -> Counter | None:
    if tokenizer is None:
        return None
    from tokenizers import Tokenizer

    path = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
    if not path.is_file():
        raise SettingError(f"{path} is not there.", "--tokenizer wants a tokenizer.json or its folder.")
    loaded = Tokenizer.from_file(str(path))

    async def count(text: str) -> int:
        return len(loaded.encode(text, add_special_tokens=True).ids)

    return count


def _progress(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _as_json(results: Runs, chosen: tuple[Workload, ...], model: str, forced: bool) -> str:
    report = {
        "model": model,
        "length_forced": forced,
        "workloads": chosen,
        "figures": {name: over_runs(runs) for name, runs in results.items()},
        "runs": results,
    }
    return msgspec.json.format(msgspec.json.encode(report), indent=1).decode()
