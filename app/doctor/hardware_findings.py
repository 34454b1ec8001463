"""Findings about processors, memory and GPUs, from the machine's facts, with those of the modules beside. Pure."""

from __future__ import annotations

from collections.abc import Collection

from app.doctor.finding import Finding
from app.doctor.gpu_findings import gpu_findings
from app.doctor.rate_findings import rate_findings
from app.doctor.sharing_findings import sharing_findings
from backend.hardware.gpu import Gpu
from backend.hardware.machine import Machine
from backend.planner.units import human_bytes

# The starter model with its pages; less cannot serve anything of use.
_LEAST_MEMORY = 2 << 30


def hardware_findings(machine: Machine, own: Collection[int] = ()) -> list[Finding]:
    """`own`: processes of this user's servers."""
    return [
        _cpu(machine),
        _memory(machine),
        *_gpus(machine),
        *gpu_findings(machine),
        *sharing_findings(machine, own),
        *rate_findings(machine),
    ]


def _cpu(machine: Machine) -> Finding:
    cpu = machine.cpu
    limit = f", limited to {cpu.quota:.3g} by a processor quota" if cpu.quota is not None else ""
    features = ", ".join(cpu.features) or "no vector extensions that matter here"
    what = f"{cpu.name}: {cpu.cores} cores for this process{limit}; {features}."
    if cpu.native_bfloat16:
        return Finding("cpu", "ok", f"{what} It multiplies bfloat16 natively, so bfloat16 is its dtype.")
    return Finding(
        "cpu",
        "note",
        f"{what} It does not multiply bfloat16 natively, so float32 is its dtype, which is slower.",
    )


def _memory(machine: Machine) -> Finding:
    memory = machine.memory
    whose = "of this container's limit" if memory.limited else "of main memory"
    what = f"{human_bytes(memory.available)} of {human_bytes(memory.total)} {whose} are available."
    if memory.available < _LEAST_MEMORY:
        fix = "Raise the container's memory limit." if memory.limited else "Close programs that hold memory."
        return Finding("memory", "warning", f"{what} That is little even for the starter model.", fix)
    return Finding("memory", "ok", what)


def _gpus(machine: Machine) -> list[Finding]:
    if machine.gpus:
        return [_gpu(number, gpu) for number, gpu in enumerate(machine.gpus)]
    if machine.gpu_problem:
        return [
            Finding(
                "gpu",
                "warning",
                f"{machine.gpu_problem} The CPU serves.",
                "Check that `nvidia-smi` answers; if it does not, reload the driver or restart the machine.",
            )
        ]
    return [Finding("gpu", "note", "No NVIDIA driver, or no GPU that CUDA shows to this process. The CPU serves.")]


def _gpu(number: int, gpu: Gpu) -> Finding:
    what = (
        f"GPU {number}: {gpu.name}, {human_bytes(gpu.free)} of {human_bytes(gpu.total)} free, "
        f"compute capability {gpu.capability[0]}.{gpu.capability[1]}."
    )
    return Finding("gpu", "ok", what)
