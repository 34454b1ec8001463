from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import psutil
import pytest
import typer
from typer.testing import CliRunner

from app.commands.doctor import as_lines, doctor
from app.doctor.finding import Finding
from app.doctor.hardware_findings import hardware_findings
from app.doctor.kv_accuracy import as_table
from app.doctor.place_findings import folder_finding, library_finding, port_finding
from app.doctor.software_findings import ComputeReport, compute_findings, compute_report
from backend.accuracy.messages import AccuracyRequest
from backend.accuracy.process import measure_accuracy
from backend.accuracy.report import AccuracyReport, ContextAccuracy, FormatAccuracy
from backend.engine_settings import EngineSettings
from backend.errors import ShardwiseError
from backend.hardware.gpu import GpuHolder
from backend.hardware.memory import Memory
from backend.library.catalogue import InstalledModel
from backend.library.files import ModelFiles
from tests.fakes.machines import GIB, cpu_machine, gpu, gpu_machine

REPORT = ComputeReport("2.13.0+cpu", None, False, 1e-3, 40.0)


def statuses(found: list[Finding]) -> dict[str, str]:
    return {finding.area: finding.status for finding in found}


@pytest.fixture
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("CACHE_HOME", "DATA_HOME", "STATE_HOME", "RUNTIME_DIR"):
        folder = tmp_path / name.lower()
        folder.mkdir(mode=0o700)
        monkeypatch.setenv(f"XDG_{name}", str(folder))
    return tmp_path


def run_doctor(*arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(doctor)
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    return result.exit_code, result.stdout


def test_this_machine_can_serve_and_says_so_as_json(own_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own_folders / "torch.py").write_text("raise SystemExit('shadowed')")  # in a person's folder, it must not matter
    monkeypatch.chdir(own_folders)
    status, output = run_doctor("--json")
    report = json.loads(output)
    found = {finding["area"]: finding["status"] for finding in report["findings"]}
    assert status == 0
    assert report["serves"] is True
    assert found["self-test"] == found["torch"] == found["cache folder"] == "ok"
    assert report["machine"]["cpu"]["cores"] >= 1
    assert report["machine"]["rates"]["memory"] > 0.1
    assert found["rates"] in ("ok", "warning")
    # Looking leaves nothing behind but what it measured.
    left = [path for path in (own_folders / "cache_home").rglob("*") if path.is_file()]
    assert [path.parent.relative_to(own_folders / "cache_home") for path in left] == [Path("shardwise/rates")]


def test_a_folder_that_cannot_be_written_ends_in_status_1(own_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = own_folders / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_DATA_HOME", str(blocked))
    monkeypatch.setattr("app.commands.doctor.compute_report", lambda _: REPORT)
    monkeypatch.setattr("app.commands.doctor.measured", lambda machine: machine)
    status, output = run_doctor()
    assert status == 1
    assert "FAILURE  data folder" in output
    assert "cannot serve" in output


def test_a_report_of_torch_is_judged() -> None:
    machine = cpu_machine()
    assert set(statuses(compute_findings(REPORT, machine, "cpu", "bfloat16")).values()) == {"ok"}
    wrong = msgspec.structs.replace(REPORT, error=0.3)
    assert statuses(compute_findings(wrong, machine, "cpu", "bfloat16"))["self-test"] == "failure"


def test_a_torch_that_cannot_use_the_gpu_says_why() -> None:
    machine = gpu_machine()
    for_cpu = compute_findings(REPORT, machine, "cuda:0", "bfloat16")[0]
    assert (for_cpu.status, "CUDA build" in for_cpu.fix) == ("warning", True)
    too_new = msgspec.structs.replace(REPORT, cuda_build="14.2")
    found = compute_findings(too_new, machine, "cuda:0", "bfloat16")[0]
    assert "CUDA up to 13.0" in found.what
    assert "driver" in found.fix


def test_a_self_test_that_crashes_or_hangs_is_a_failure() -> None:
    crashed = compute_report((sys.executable, "-c", "raise SystemExit('no kernel image')"))
    assert crashed == "no kernel image"
    assert "no answer" in str(compute_report((sys.executable, "-c", "import time; time.sleep(9)"), timeout=0.2))
    found = compute_findings(crashed, cpu_machine(), "cpu", "bfloat16")
    assert (found[0].status, "no kernel image" in found[0].what) == ("failure", True)


def test_a_gpu_that_does_not_compute_leaves_the_cpu(own_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.commands.doctor.read_machine", gpu_machine)
    monkeypatch.setattr("app.commands.doctor.measured", lambda machine: machine)
    monkeypatch.setattr(
        "app.commands.doctor.compute_report", lambda command: REPORT if "cpu" in command else "no kernel image"
    )
    status, output = run_doctor("--json")
    found = [(finding["area"], finding["status"]) for finding in json.loads(output)["findings"]]
    assert status == 0
    assert ("torch", "warning") in found
    assert ("self-test", "ok") in found


def test_hardware_is_described_with_its_limits() -> None:
    assert statuses(hardware_findings(cpu_machine())) == {"cpu": "ok", "memory": "ok", "gpu": "note", "rates": "note"}
    weak = msgspec.structs.replace(cpu_machine(features=("avx2",)), memory=Memory(GIB, GIB // 2, limited=True))
    assert statuses(hardware_findings(weak)) == {"cpu": "note", "memory": "warning", "gpu": "note", "rates": "note"}
    hung = msgspec.structs.replace(cpu_machine(), gpu_problem="The NVIDIA driver did not answer within 15 s.")
    assert statuses(hardware_findings(hung))["gpu"] == "warning"


def test_who_holds_a_gpus_memory_is_named() -> None:
    held = gpu(free=2 * GIB, holders=(GpuHolder(77, "blender", 20 * GIB), GpuHolder(78, "", None)))
    found = {
        finding.status: finding.what for finding in hardware_findings(gpu_machine(held)) if finding.area == "sharing"
    }
    assert "22 GiB of GPU 0 (Test GPU) are held by blender (77, 20 GiB), a process (78)" in found["warning"]
    assert "sharing" not in statuses(hardware_findings(gpu_machine()))


def test_a_missing_folder_is_asked_of_the_one_it_would_lie_in(tmp_path: Path) -> None:
    assert folder_finding("cache", tmp_path / "not" / "yet").status == "ok"
    assert not (tmp_path / "not").exists()


def test_a_taken_port_is_a_warning() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert port_finding(port).status == "warning"
    assert port_finding(port).status == "ok"


def test_the_library_lists_its_models() -> None:
    assert library_finding([]).status == "note"
    model = InstalledModel(name="org/name", format="gguf", bytes=3 * GIB, architecture="llama", path="/a")
    found = library_finding([model])
    assert (found.status, found.what) == ("ok", "Installed: org/name; 3 GiB.")


def test_lines_show_the_fix_below_the_finding() -> None:
    text = as_lines([Finding("port", "warning", "Taken.", "Choose another."), Finding("cpu", "ok", "Fine.")])
    assert [line.strip() for line in text.splitlines()] == [
        "warning  port  Taken.",
        "-> Choose another.",
        "ok       cpu   Fine.",
    ]


REPORT_OF_FORMATS = AccuracyReport(
    model="starter",
    dtype="bfloat16",
    device="cpu",
    contexts=(
        ContextAccuracy(
            tokens=1512,
            generated=32,
            formats=(
                FormatAccuracy(kv_format="model", token_bytes=23040, perplexity=24.78, change=0.0, divergence=0.0),
                FormatAccuracy(
                    kv_format="fp8", token_bytes=11880, perplexity=24.9, change=0.0038, divergence=5e-3,
                    first_difference=8,
                ),
                FormatAccuracy(
                    kv_format="k=model,v=int8", token_bytes=17460, perplexity=24.7, change=-0.0027, divergence=1.6e-3
                ),
            ),
        ),
    ),
    chosen="k=model,v=int8",
    reason="Because of its figures.",
)  # fmt: skip


def test_formats_are_shown_as_a_table_with_verdicts() -> None:
    lines = [" ".join(line.split()) for line in as_table(REPORT_OF_FORMATS).splitlines()]
    assert lines[2:] == [
        "1,512 tokens, and 32 generated after them",
        "format bytes/token perplexity change mean KLD first difference verdict",
        "model 23,040 24.78 - - - the model's own",
        "fp8 11,880 24.9 +0.38% 5.0e-03 token 9 fails",
        "k=model,v=int8 17,460 24.7 -0.27% 1.6e-03 none passes",
        "",
        "--kv-format auto takes k=model,v=int8. Because of its figures.",
    ]


def test_kv_measures_a_model_as_the_settings_say_and_prints_json(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[AccuracyRequest] = []

    def measured(request: AccuracyRequest, on_progress: object) -> AccuracyReport:
        asked.append(request)
        return REPORT_OF_FORMATS

    files = REQUEST.settings.files
    monkeypatch.setattr("app.compose.find_model", lambda name: msgspec.structs.replace(files, name=name))
    monkeypatch.setattr("app.doctor.kv_accuracy.measure_accuracy", measured)
    monkeypatch.setenv("SHARDWISE_DTYPE", "float32")
    status, output = run_doctor("--kv", "starter", "--kv-context", "900", "--seconds", "5", "--json")
    assert status == 0
    assert msgspec.json.decode(output, type=AccuracyReport) == REPORT_OF_FORMATS
    settings = EngineSettings(
        files=msgspec.structs.replace(files, name="starter"), dtype="float32", kv_format="model", host_cache=0
    )
    assert asked == [AccuracyRequest(settings=asked[0].settings, tokens=900, seconds=5.0)]
    for name in ("files", "dtype", "kv_format", "host_cache", "disk_cache"):
        assert getattr(asked[0].settings, name) == getattr(settings, name)


REQUEST = AccuracyRequest(
    settings=EngineSettings(files=ModelFiles(name="m", format="gguf", weights=("/m",), folder="/m", bytes=1))
)


def test_a_measurement_that_dies_is_an_error_for_people() -> None:
    dying = (sys.executable, "-c", "import sys; sys.stdin.read(); sys.exit('killed by the cold')")
    with pytest.raises(ShardwiseError, match="status 1: killed by the cold"):
        measure_accuracy(REQUEST, lambda stage, done, total: None, dying)
    with pytest.raises(ShardwiseError, match="without an answer"):
        measure_accuracy(REQUEST, lambda stage, done, total: None, (sys.executable, "-c", ""))


def test_what_cannot_be_measured_keeps_its_code_and_status() -> None:
    program = (
        "import sys; from backend.accuracy.messages import NotMeasured, send; "
        "send(sys.stdout.buffer, NotMeasured('What.', 'Why.', 'Do.', 'bad_setting', 2))"
    )
    with pytest.raises(ShardwiseError, match=r"What\.\nWhy\.\nDo\.") as refused:
        measure_accuracy(REQUEST, lambda stage, done, total: None, (sys.executable, "-P", "-c", program))
    assert (refused.value.code, refused.value.exit_status) == ("bad_setting", 2)


def test_a_measurement_ends_with_whoever_asked(tmp_path: Path) -> None:
    """Progress that raises stops the process, which would sleep for a minute."""
    program = (
        "import os, pathlib, sys, time; from backend.accuracy.messages import Measuring, send; "
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid())); "
        "send(sys.stdout.buffer, Measuring('load', 1, 2)); time.sleep(60)"
    )

    def stop(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt(f"{stage} {done}/{total}")

    with pytest.raises(KeyboardInterrupt, match="load 1/2"):
        measure_accuracy(REQUEST, stop, (sys.executable, "-P", "-c", program))
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_doctor_loads_no_torch_whatever_it_is_asked() -> None:
    program = "import sys, app.commands.doctor, app.doctor.kv_accuracy; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[3]
    assert subprocess.run((sys.executable, "-c", program), cwd=root, check=False).returncode == 0
