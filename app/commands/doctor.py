"""`shardwise doctor`: what this machine can and cannot do, with fixes. The judging is `app.doctor`'s."""

from __future__ import annotations

from typing import Annotated

import msgspec
import platformdirs
import typer

from app.background import log_folder
from app.doctor.finding import Finding
from app.doctor.hardware_findings import hardware_findings
from app.doctor.kv_accuracy import as_table, kv_accuracy
from app.doctor.own_processes import own_processes
from app.doctor.peer_findings import peer_findings
from app.doctor.place_findings import folder_finding, library_finding, port_finding
from app.doctor.software_findings import (
    compute_findings,
    compute_report,
    python_finding,
    self_test_command,
)
from app.doctor.stage_lines import shown_stages
from app.runtime_file import runtime_folder
from backend.hardware.host_probe import measured
from backend.hardware.machine import Machine, read_machine
from backend.hardware.peer_probe import probed
from backend.library.catalogue import catalogue
from backend.library.locations import cache_home
from backend.planner.target import choose_dtype, choose_target

_MARKS = {"ok": "ok     ", "note": "note   ", "warning": "warning", "failure": "FAILURE"}


def doctor(
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port that a server would take.")] = 8000,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
    kv: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Measure instead how accurate the KV formats are for a model."),
    ] = None,
    kv_context: Annotated[
        int | None,
        typer.Option(min=2, metavar="TOKENS", help="With --kv: the longest text. [default: as time allows]"),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="With --kv: time to measure, loading aside.")
    ] = 60.0,
) -> None:
    """Check what this machine can and cannot do, and say how to fix it."""
    if kv is not None:
        _show_accuracy(kv, kv_context, seconds, json)
        return
    machine = measured(probed(read_machine()))
    found = findings(machine, port)
    serves = all(finding.status != "failure" for finding in found)
    if json:
        report = {"serves": serves, "findings": found, "machine": machine}
        print(msgspec.json.format(msgspec.json.encode(report), indent=1).decode())
    else:
        print(as_lines(found))
        print("\nThis machine can serve." if serves else "\nThis machine cannot serve until that is fixed.")
    if not serves:
        raise typer.Exit(1)


def _show_accuracy(model: str, tokens: int | None, seconds: float, as_json: bool) -> None:
    """How far each KV format moves the model's answers, and what --kv-format auto would take."""
    from app.compose import find_model
    from app.settings import load_settings

    settings = load_settings().engine(find_model(model))
    with shown_stages() as on_progress:
        report = kv_accuracy(settings, tokens, seconds, on_progress)
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(report), indent=1).decode())
    else:
        print(as_table(report))


def findings(machine: Machine, port: int) -> list[Finding]:
    """Looks at everything, the self-test (some seconds, mostly torch's import) included."""
    computed = _computed(machine, "auto")
    if machine.gpus and any(finding.status == "failure" for finding in computed):
        # A GPU that does not compute is no failure of the machine as long as its CPU does.
        failures = [finding for finding in computed if finding.status == "failure"]
        computed = [*map(_as_warning, failures), *_computed(machine, "cpu")]
    return [
        python_finding(),
        *computed,
        *hardware_findings(machine, own_processes()),
        folder_finding("cache", cache_home(), needs_space=True),
        folder_finding("data", platformdirs.user_data_path("shardwise")),
        folder_finding("log", log_folder()),
        folder_finding("runtime", runtime_folder()),
        port_finding(port),
        *peer_findings(),
        library_finding(catalogue()),
    ]


def _computed(machine: Machine, asked: str) -> list[Finding]:
    """The self-test on the device that a plan would take, in the dtype that follows."""
    target = choose_target(asked, machine)
    dtype, _ = choose_dtype("auto", target)
    report = compute_report(self_test_command(target.device, dtype, [gpu.uuid for gpu in machine.gpus]))
    return compute_findings(report, machine, target.device, dtype)


def as_lines(found: list[Finding]) -> str:
    """One line a finding, its fix below it."""
    width = max(len(finding.area) for finding in found)
    lines: list[str] = []
    for finding in found:
        lines.append(f"{_MARKS[finding.status]}  {finding.area:<{width}}  {finding.what}")
        if finding.fix:
            lines.append(f"{'':<{width + 9}}  -> {finding.fix}")
    return "\n".join(lines)


def _as_warning(finding: Finding) -> Finding:
    return msgspec.structs.replace(finding, status="warning")
