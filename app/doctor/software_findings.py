"""Findings about Python and torch: a self-test runs in a process of its own, and its answer is judged here."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from app.doctor.finding import Finding
from backend.hardware.machine import Machine

_TIMEOUT = 90.0  # seconds; the first import of torch from a cold disk takes tens of them
# The error of a product of random matrices, as a share of it: rounding alone stays well below.
_TOLERANCE = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 2e-2}


class ComputeReport(msgspec.Struct, frozen=True):
    """What the self-test answers; see `compute`."""

    torch: str
    cuda_build: str | None
    cuda_available: bool
    error: float
    gflops: float


def python_finding() -> Finding:
    return Finding("python", "ok", f"Python {platform.python_version()} on {platform.platform()}.")


def self_test_command(device: str, dtype: str, gpus: Sequence[str] = ()) -> tuple[str, ...]:
    """The self-test's command line: by path, because a person's own folder may have a package `app`.

    gpus: uuids of those among which the device's number counts.
    """
    return (sys.executable, "-P", str(Path(__file__).with_name("compute.py")), device, dtype, *gpus)


def compute_report(command: tuple[str, ...], timeout: float = _TIMEOUT) -> ComputeReport | str:
    """Runs the self-test; what went wrong is its last line of complaint."""
    try:
        ended = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer within {timeout:.0f} s"
    lines: list[Any] = ended.stdout.splitlines() or [b""]
    try:
        return msgspec.json.decode(lines[-1], type=ComputeReport)
    except msgspec.MsgspecError:
        complaint = ended.stderr.decode("utf-8", "replace").strip().splitlines()
        return complaint[-1] if complaint else f"exit status {ended.returncode}"


def compute_findings(report: ComputeReport | str, machine: Machine, device: str, dtype: str) -> list[Finding]:
    """Judges the self-test's answer."""
    if isinstance(report, str):
        return [
            Finding(
                "torch",
                "failure",
                f"torch does not compute in {dtype} on {device}: {report}.",
                'Install it again: pip install --force-reinstall "torch==2.13.*"',
            )
        ]
    return [_torch(report, machine), _self_test(report, device, dtype)]


def _torch(report: ComputeReport, machine: Machine) -> Finding:
    build = f"built for CUDA {report.cuda_build}" if report.cuda_build else "built for CPU only"
    what = f"torch {report.torch}, {build}."
    if not machine.gpus or report.cuda_available:
        return Finding("torch", "ok", what)
    if report.cuda_build is None:
        return Finding(
            "torch",
            "warning",
            f"{what} The GPUs of this machine cannot be used.",
            "Install a CUDA build of torch 2.13: see https://pytorch.org/get-started/locally/",
        )
    driver = machine.gpus[0]
    return Finding(
        "torch",
        "warning",
        f"{what} It cannot use the GPUs: driver {driver.driver} serves CUDA up to {driver.cuda[0]}.{driver.cuda[1]}.",
        "Update the NVIDIA driver, or install a torch built for an older CUDA.",
    )


def _self_test(report: ComputeReport, device: str, dtype: str) -> Finding:
    what = f"Multiplying in {dtype} on {device}: {report.gflops:.0f} GFLOP/s on small matrices"
    if report.error <= _TOLERANCE[dtype]:
        return Finding("self-test", "ok", f"{what}, and the results are right.")
    return Finding(
        "self-test",
        "failure",
        f"{what}, and the results are wrong by {report.error:.1%}.",
        "Try another --dtype or --device; the hardware or the driver may be faulty.",
    )
