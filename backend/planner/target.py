"""Target: a device that ranks may get, and the dtype that follows from it; which they get is `ranks`'."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from backend.errors import SettingError
from backend.hardware.gpu import Gpu
from backend.hardware.machine import Machine
from backend.planner.units import human_bytes

# Shares of the memory that is free now: the rest is for fragments, and for what others take while we run.
_USABLE_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Target:
    """A device to plan for.

    Attributes:
        device: as torch names it.
        label: as people name it.
        cuda: whether it is a GPU.
        free: bytes free on it now.
        usable: bytes of those that a plan may take.
        native_bfloat16: whether it multiplies bfloat16 in hardware.
        reason: why this device, as a sentence.
        capability: a GPU's compute capability; None of a processor.
    """

    device: str
    label: str
    cuda: bool
    free: int
    native_bfloat16: bool
    reason: str
    capability: tuple[int, int] | None = None

    @property
    def usable(self) -> int:
        return int(self.free * _USABLE_SHARE)


def choose_target(device: str, machine: Machine) -> Target:
    """The device for auto, cuda or cpu: the GPU with the most free memory, else the CPU.

    Raises:
        SettingError: a GPU was asked for and there is none.
    """
    if device == "cuda" and not machine.gpus:
        raise SettingError(
            "--device cuda needs an NVIDIA GPU.",
            " ".join(fault.what for fault in machine.left_out)
            or machine.gpu_problem
            or "No NVIDIA driver, or no GPU that CUDA shows to this process, was found.",
            "Use --device cpu, or run `shardwise doctor`.",
        )
    if device == "cpu" or not machine.gpus:
        return _cpu_target(device, machine)
    number = max(range(len(machine.gpus)), key=lambda index: (machine.gpus[index].free, -index))
    return _gpu_target(number, machine.gpus[number], len(machine.gpus))


def _cpu_target(asked: str, machine: Machine) -> Target:
    why = "--device cpu asks for it" if asked == "cpu" else "no usable NVIDIA GPU was found"
    if asked == "auto" and machine.gpu_problem:
        why += f" ({machine.gpu_problem.rstrip('.')})"
    return Target(
        device="cpu",
        label=f"CPU {machine.cpu.name}",
        cuda=False,
        free=machine.memory.available,
        native_bfloat16=machine.cpu.native_bfloat16,
        reason=f"The CPU computes, because {why}.",
    )


def gpu_targets(machine: Machine, numbers: Iterable[int]) -> tuple[Target, ...]:
    """The GPUs at these positions of `Machine.gpus`."""
    return tuple(_gpu_target(number, machine.gpus[number], len(machine.gpus)) for number in numbers)


def cpu_targets(cpu: Target, ranks: int) -> tuple[Target, ...]:
    """The processor for each of several ranks, which share its memory."""
    return (cpu,) * ranks


def _gpu_target(number: int, gpu: Gpu, count: int) -> Target:
    among = f", the most of {count} GPUs" if count > 1 else ""
    return Target(
        device=f"cuda:{number}",
        label=f"GPU {number} {gpu.name}",
        cuda=True,
        free=gpu.free,
        native_bfloat16=gpu.capability >= (8, 0),
        reason=f"GPU {number} ({gpu.name}) computes: {human_bytes(gpu.free)} are free on it{among}.",
        capability=gpu.capability,
    )


def choose_dtype(asked: str, target: Target) -> tuple[str, str]:
    """The dtype of weights and activations where `asked` is one or auto, and why, as a sentence."""
    if asked != "auto":
        slow = asked == "bfloat16" and not target.native_bfloat16
        note = "; this device does not multiply it natively, which is slow" if slow else ""
        return asked, f"The dtype is {asked}, as --dtype asks{note}."
    if target.native_bfloat16:
        return "bfloat16", "The dtype is bfloat16, which this device multiplies natively."
    if target.cuda:
        return "float16", "The dtype is float16: this GPU does not multiply bfloat16 natively."
    return "float32", "The dtype is float32: this CPU does not multiply bfloat16 natively."
