"""`shardwise fit`: what fits, how fast and for how much, before anything is downloaded. Planning is `app.fitting`'s."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from backend.errors import SettingError
from backend.hardware.specification import GRAMMAR
from backend.planner.fit.ask import EngineName, FitAsk, Goal

# What a script sees where nothing fits; mistakes end with their own errors' statuses.
DOES_NOT_FIT = 3


# The mark behind which click leaves a paragraph's lines as they are.
_AS_IS = "\b\n"
_EPILOG = "\n\n".join(_AS_IS + part for part in f"Hardware (SPEC):\n\n{GRAMMAR}".split("\n\n"))
fit = typer.Typer(rich_markup_mode=None, add_completion=False)


@fit.command("fit", epilog=_EPILOG)
def show_fit(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]", help="org/name[@revision], a folder, or a .gguf file; without: the catalogue."
        ),
    ] = None,
    *,
    hardware: Annotated[
        list[str] | None,
        typer.Option(metavar="SPEC", help="Where it would run, see below; several are compared. [default: local]"),
    ] = None,
    context: Annotated[
        str | None,
        typer.Option(
            metavar="TOKENS",
            help="Prompt and answer of one user, such as 8192 or 128K. [default: the model's, 8192 at most]",
        ),
    ] = None,
    users: Annotated[int, typer.Option(min=1, help="Answered at the same time.")] = 1,
    goal: Annotated[Goal, typer.Option(help="What ranks first.")] = "latency",
    engine: Annotated[EngineName, typer.Option(help="Whose accounting of memory and time.")] = "shardwise",
    engine_version: Annotated[
        str, typer.Option(metavar="V", help="vLLM's, such as 0.19.0; the newest by default.")
    ] = "",
    price: Annotated[
        float | None,
        typer.Option(min=0, metavar="USD", help="Of one GPU and hour. [default: a table's, with its date]"),
    ] = None,
    weights: Annotated[str, typer.Option(metavar="F,...", help="Weight formats to consider; all by default.")] = "",
    kv_format: Annotated[str, typer.Option(metavar="F,...", help="KV formats to consider; all by default.")] = "",
    prompt: Annotated[int, typer.Option(min=1, metavar="TOKENS", help="Of a typical request.")] = 1024,
    answer: Annotated[int, typer.Option(min=1, metavar="TOKENS", help="Of a typical request.")] = 256,
    utilization: Annotated[
        float | None, typer.Option(min=0.01, max=1, metavar="SHARE", help="vLLM's gpu_memory_utilization.")
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Ask no hub: only what is here, and the catalogue.")
    ] = False,
    plans: Annotated[int, typer.Option(min=1, metavar="COUNT", help="How many plans to list.")] = 8,
    plan: Annotated[
        int | None, typer.Option(metavar="NUMBER", help="The plan to tell more about; the best that fits by default.")
    ] = None,
    links: Annotated[
        bool,
        typer.Option("--links", help="Print instead what GPUs send each other for the model, and how long it takes."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Draw no bars, as in a pipe.")] = False,
) -> None:
    """Say what fits on which hardware, how fast it would be and what it costs, before a byte is downloaded.

    The exit status is 0 where it fits and 3 where it does not (of several machines: on none).
    """
    positions = None if context is None else _tokens(context)
    if model is None:
        _print_catalogue(positions or 1024, as_json)
        return
    places = hardware or ["local"]
    if links:
        _print_links(model, places, offline, as_json)
        return
    _check_engine(engine, engine_version, utilization)
    ask = FitAsk(
        context=positions,
        users=users,
        goal=goal,
        engine=engine,
        engine_version=engine_version,
        prompt=prompt,
        answer=answer,
        weights=_names(weights),
        kv_formats=_names(kv_format),
        price=price,
        utilization=utilization,
    )
    from app.fitting import fit_reports

    reports = fit_reports(model, places, ask, offline=offline)
    if as_json:
        _print_json(reports if len(places) > 1 else reports[0])
    elif len(places) > 1:
        from app.fit.comparison import as_comparison

        print(as_comparison(reports, places))
    else:
        from app.fit.text import as_text

        print(as_text(reports[0], plans, plan, bars=sys.stdout.isatty() and not plain))
    if all(report.best is None for report in reports):
        raise typer.Exit(DOES_NOT_FIT)


def _check_engine(engine: EngineName, version: str, utilization: float | None) -> None:
    """What only vLLM has is refused elsewhere, rather than passed over."""
    given = "--engine-version" if version else "--utilization" if utilization is not None else ""
    if given and engine != "vllm":
        raise SettingError(
            f"{given} is vLLM's.", f"The engine is {engine}.", "Say --engine vllm too, or leave it away."
        )


def _names(text: str) -> tuple[str, ...]:
    """Names between commas. "k=fp8,v=int8" is one format of keys and values, though it has a comma."""
    names: list[str] = []
    for part in filter(None, (each.strip() for each in text.split(","))):
        if part.startswith("v=") and names and names[-1].startswith("k=") and "," not in names[-1]:
            names[-1] += f",{part}"
        else:
            names.append(part)
    return tuple(names)


def _tokens(text: str) -> int:
    """8192, 8,192, 8K or 1M: K and M are 1024 and 1024², as contexts are counted."""
    digits = text.strip().replace(",", "").replace("_", "").upper()
    unit = {"K": 1 << 10, "M": 1 << 20}.get(digits[-1:], 1)
    number = digits if unit == 1 else digits[:-1]
    if not number.isascii() or not number.isdigit() or not int(number):
        raise SettingError(f"--context cannot be {text!r}", "It is a count of tokens.", "Say 8192, 32K or 1M.")
    return int(number) * unit


def _print_catalogue(context: int, as_json: bool) -> None:
    from app.fit.models import as_table, model_rows
    from backend.library.model_table import catalogue

    rows = model_rows([model.known(model.id.partition(" ")[0]) for model in catalogue()], context)
    if as_json:
        _print_json(rows)
    else:
        print(as_table(rows))


def _print_links(model: str, hardware: list[str], offline: bool, as_json: bool) -> None:
    from app.fit.links import as_table, way_costs
    from app.fitting import find_model, read_hardware

    clusters = [read_hardware(text) for text in hardware]
    known = find_model(model, offline=offline)
    costs = way_costs(known, clusters, hardware)
    if as_json:
        _print_json(costs)
    else:
        print(as_table(known, costs))


def _print_json(value: object) -> None:
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(value), indent=1).decode())
