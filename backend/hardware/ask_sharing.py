"""Asks NVML and the environment how a GPU is shared: MIG, compute mode, MPS, vGPU. For the asking processes only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pynvml

from backend.hardware.ask_holders import ask_holders
from backend.hardware.gpu import ComputeMode, GpuInstance
from backend.hardware.nvml_value import value_or

# Where CUDA looks for the control daemon, if the environment names no folder (NVIDIA's documentation of MPS).
_MPS_FOLDER = "/tmp/nvidia-mps"


def ask_mode(handle: Any) -> ComputeMode:
    mode = value_or(pynvml.NVML_COMPUTEMODE_DEFAULT, lambda: pynvml.nvmlDeviceGetComputeMode(handle))
    if mode == pynvml.NVML_COMPUTEMODE_PROHIBITED:
        return "prohibited"
    return "default" if mode == pynvml.NVML_COMPUTEMODE_DEFAULT else "exclusive"


def is_mig(handle: Any) -> bool:
    """Whether MIG is on now; one that only waits for a reset is not."""
    current, _ = value_or((pynvml.NVML_DEVICE_MIG_DISABLE, 0), lambda: pynvml.nvmlDeviceGetMigMode(handle))
    return current == pynvml.NVML_DEVICE_MIG_ENABLE


def ask_instances(handle: Any) -> tuple[GpuInstance, ...]:
    """The instances of a GPU that MIG divides; those that a container does not show are missing."""
    most = value_or(0, lambda: int(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)))
    instances = (
        value_or(None, lambda index=index: _instance(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)))
        for index in range(most)
    )
    return tuple(instance for instance in instances if instance is not None)


def _instance(handle: Any) -> GpuInstance:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return GpuInstance(
        uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
        name=str(pynvml.nvmlDeviceGetName(handle)),
        total=int(memory.total),
        free=int(memory.free),
        holders=ask_holders(handle),
    )


def is_virtual(handle: Any) -> bool:
    none = pynvml.NVML_GPU_VIRTUALIZATION_MODE_NONE
    return value_or(none, lambda: pynvml.nvmlDeviceGetVirtualizationMode(handle)) == (
        pynvml.NVML_GPU_VIRTUALIZATION_MODE_VGPU
    )


def mps_waits() -> bool:
    """Whether CUDA programs of ours would become clients of a control daemon: its pipe is where they look for it."""
    folder = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY") or _MPS_FOLDER)
    return (folder / "control").exists()
