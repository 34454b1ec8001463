"""A FitReport as text for a terminal or a pipe, 80 columns wide: verdict, plans, memory, reasons, ways out."""

from __future__ import annotations

from shlex import quote
from textwrap import wrap

from app.fit.columns import columns
from app.fit.devices import device_lines, fullest, taken
from app.fit.words import (
    BOUNDS,
    JOINING,
    counted,
    dollars,
    formats,
    gib,
    layout,
    layout_in_words,
    over_machines,
    rate,
    seconds,
    seconds_between,
    term_names,
    term_title,
    verdict_words,
)
from app.text_safety import clean, clean_line
from backend.errors import SettingError
from backend.planner.fit.report import Cost, FitPlan, FitReport, WayOut

WIDTH = 80
_PLAN_HEAD = ("#", "layout", "formats", "verdict", "context", "users", "first", "token", "tok/s", "$/1M", "run")
_PLAN_ALIGN = "><<<>>>>>><"
_LEGEND = (
    "layout: tensor x stages x replicas, e for whole experts; formats: weights/kv, where kv is not the model's own; "
    "context: the largest; users: at once, with the context asked for; run: whether this version can"
)


def as_text(report: FitReport, shown: int, number: int | None = None, bars: bool = False, width: int = WIDTH) -> str:
    """The whole answer.

    Arguments:
        shown: how many plans are listed; the one that is told of is always among them.
        number: the plan that is told of, from 1 on; None for the best that fits.
        bars: whether memory is drawn too, as a terminal can show.

    Raises:
        SettingError: there is no such plan.
    """
    told = chosen_plan(report) if number is None else _numbered(report, number)
    rows = [(at, plan) for at, plan in enumerate(report.plans, start=1) if at <= shown or plan is told]
    blocks = [
        _head(report, told, width),
        _plans(report, rows, width),
        _memory(rows, width),
        _told(report, told, bars, width),
        _ways_out(report.ways_out, width),
        _command(report, told, width),
        _notes(report, told, width),
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def chosen_plan(report: FitReport) -> FitPlan:
    """The best plan that fits; where none does, the first, which comes nearest."""
    return report.plans[report.best or 0]


def _numbered(report: FitReport, number: int) -> FitPlan:
    if not 1 <= number <= len(report.plans):
        raise SettingError(
            f"There is no plan {number}.", f"There are {len(report.plans)}.", "--plans lists more of them."
        )
    return report.plans[number - 1]


def _head(report: FitReport, told: FitPlan, width: int) -> list[str]:
    ask = report.ask
    engine = f"{ask.engine} {ask.engine_version}".strip()
    asked = (
        f"{counted(ask.users, 'user')}, context {ask.context or 0:,}; prompt {ask.prompt:,}, answer {ask.answer:,}; "
        f"goal {ask.goal}; engine {engine}"
    )
    number = report.plans.index(told) + 1
    which = f" (plan {number})" if number > 1 else ""
    return [
        *_filled("model", f"{clean_line(report.model)}; {clean_line(report.source)}", width),
        *_filled("hardware", clean_line(report.hardware), width),
        *_filled("asked", asked, width),
        *_filled("verdict", verdict_words(told.verdict) + which, width),
    ]


def _filled(name: str, value: str, width: int, indent: int = 10) -> list[str]:
    """A name with its value beside it, wrapped."""
    lines = wrap(value, width - indent, break_on_hyphens=False)
    return [f"{name if not position else '':<{indent}}{line}" for position, line in enumerate(lines)]


def runs(report: FitReport, plan: FitPlan) -> bool:
    """Whether the engine that was asked for runs the plan; vLLM runs all that fit, though we do not start it."""
    return plan.runnable or (report.ask.engine == "vllm" and plan.verdict.kind != "too large")


def _plans(report: FitReport, rows: list[tuple[int, FitPlan]], width: int) -> list[str]:
    left = len(report.plans) - len(rows)
    cells = [_plan_row(report, number, plan) for number, plan in rows]
    return [
        "plans, best first",
        *columns(_PLAN_HEAD, cells, _PLAN_ALIGN, width),
        *([f"({left:,} more: --plans {len(report.plans)})"] if left > 0 else []),
        *wrap(_LEGEND, width),
    ]


def _plan_row(report: FitReport, number: int, plan: FitPlan) -> tuple[str, ...]:
    run = "yes" if runs(report, plan) else "no"
    return (str(number), layout(plan), formats(plan), plan.verdict.kind, *speed_cells(plan), run)


def speed_cells(plan: FitPlan | None) -> tuple[str, ...]:
    """Largest context, users at once, first token, token to token, tokens/s, $/1M; "-" where there is none."""
    if plan is None:
        return ("-",) * 6
    speed, cost = plan.speed, plan.cost
    return (
        f"{plan.largest_context:,}" if plan.largest_context else "-",
        f"{plan.concurrency:,}" if plan.concurrency else "-",
        seconds(speed.first_token.likely) if speed else "-",
        seconds(speed.token.likely) if speed else "-",
        rate(speed.throughput.likely) if speed else "-",
        dollars(cost.per_million.likely) if cost else "-",
    )


def _memory(plans: list[tuple[int, FitPlan]], width: int) -> list[str]:
    """The terms of each plan's fullest device."""
    names = term_names(term.name for _, plan in plans for term in fullest(plan).terms)
    head = ("#", *map(term_title, names), "sum", "usable", "of")
    rows = [_memory_row(number, plan, names) for number, plan in plans]
    return ["memory of the fullest device, GiB", *columns(head, rows, ">" * len(head), width)]


def _memory_row(number: int, plan: FitPlan, names: list[str]) -> tuple[str, ...]:
    device = fullest(plan)
    terms = {term.name: term.bytes for term in device.terms}
    amounts = [*(terms.get(name, 0) for name in names), taken(device), device.usable, device.total]
    return (str(number), *map(gib, amounts))


def _told(report: FitReport, plan: FitPlan, bars: bool, width: int) -> list[str]:
    number = report.plans.index(plan) + 1
    return [
        *wrap(f"plan {number}: {layout_in_words(plan)}", width, subsequent_indent="  "),
        *device_lines(plan, bars, width),
        *speed_lines(plan, width),
        *(_item(reason, width) for reason in plan.reasons),
        *(
            [_item(f"Not run by this version: {plan.blocked}", width)]
            if plan.blocked and report.ask.engine == "shardwise"
            else []
        ),
    ]


def speed_lines(plan: FitPlan, width: int) -> list[str]:
    """Predicted times with their ranges; also what `serve --explain` says. Nothing where nothing is predicted."""
    speed = plan.speed
    if speed is None:
        return []
    throughput = speed.throughput
    waits = "a step waits for copies from host memory" if plan.hosted and speed.bound == "link" else BOUNDS[speed.bound]
    rows = (
        ("first token", f"{seconds_between(speed.first_token)}, with nobody else waiting"),
        ("token to token", f"{seconds_between(speed.token)}; alone {seconds(speed.alone.likely)}"),
        (
            "tokens/s",
            f"{rate(throughput.likely)} ({rate(throughput.low)} to {rate(throughput.high)}), "
            f"{counted(speed.sequences, 'sequence')} at once",
        ),
        ("bound", f"{waits}; {_sent(speed.communication)}"),
    )
    return [f"  {line}" for name, value in rows for line in _filled(name, value, width - 2, 15)]


def plan_outlook(model: str, plan: FitPlan, width: int = WIDTH) -> str:
    """The verdict and the times of a plan that was decided elsewhere: what `serve --explain` adds."""
    lines = [
        *_filled("verdict", verdict_words(plan.verdict), width),
        "predicted",
        *speed_lines(plan, width),
    ]
    hint = f"`shardwise fit {clean_line(model)}` compares other formats, GPUs and contexts, and says what it costs."
    return "\n".join([*lines, "", *wrap(hint, width)])


def _sent(count: int) -> str:
    return f"each rank sends {count / 1024:,.0f} KiB a token" if count else "nothing is sent between GPUs"


def _item(text: str, width: int) -> str:
    return "\n".join(wrap(clean(text), width, initial_indent="  - ", subsequent_indent="    ", break_on_hyphens=False))


def _ways_out(ways: tuple[WayOut, ...], width: int) -> list[str]:
    if not ways:
        return []
    return ["ways out, cheapest first", *(_item(_way_out(way), width) for way in ways)]


def _way_out(way: WayOut) -> str:
    option = f" ({way.option})" if way.option else ""
    gives = f": {way.gives}" if way.gives else ""
    return f"{way.what.rstrip('.')}{option}{gives.rstrip('.')}."


def _command(report: FitReport, best: FitPlan, width: int) -> list[str]:
    """How to run it, so that it can be copied: lines that are too long go on behind a backslash, as shells read it."""
    if best.verdict.kind == "too large" or not runs(report, best):
        return []
    commands = [_copied(serve_command(report, best), width)]
    if not over_machines(best) or report.ask.engine == "vllm":
        return ["run it with", *commands]
    return [*wrap(f"first: {JOINING}", width), "then run it with", *commands]


def _copied(command: str, width: int) -> str:
    first, *others = wrap(command, width - 6, break_on_hyphens=False, break_long_words=False)
    return " \\\n".join([f"  {first}", *(f"    {line}" for line in others)])


def serve_command(report: FitReport, plan: FitPlan) -> str:
    """What runs the plan with the report's engine."""
    program = "vllm serve" if report.ask.engine == "vllm" else "shardwise serve"
    return " ".join((program, quote(clean_line(report.model)), *map(quote, plan.options)))


def _notes(report: FitReport, best: FitPlan, width: int) -> list[str]:
    notes = [*report.notes, *([f"Cost is for {price_words(best.cost)}; --price sets it."] if best.cost else [])]
    return ["notes", *(_item(note, width) for note in notes)] if notes else []


def price_words(cost: Cost) -> str:
    """Whose price, and of when."""
    dated = f"; of {cost.dated}" if cost.dated else ""
    return f"${cost.price:.2f} a GPU and hour ({cost.source or 'as you said'}{dated})"
