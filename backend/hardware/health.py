"""What a GPU's health and settings mean: which GPUs are left out, and which only warned of. Pure."""

from __future__ import annotations

from backend.hardware.gpu import Gpu, GpuFault, GpuInstance, GpuReading


def fault_of(gpu: Gpu) -> GpuFault | None:
    """Why this GPU must not compute; None where it may."""
    health, name = gpu.health, f"GPU {gpu.index} ({gpu.name})"
    if health.uncorrectable:
        count = health.uncorrectable
        errors = "an error" if count == 1 else f"{count} errors"
        what = f"{name} has had {errors} in its memory that could not be corrected; it needs a reset."
    elif health.remap_failed:
        what = f"{name} has a broken row of memory and no spare one for it; it needs repair."
    elif health.retirement_pending:
        what = f"{name} has a broken page of memory that only a reset takes out of use."
    else:
        return None
    return GpuFault(gpu.index, gpu.uuid, what)


def barred_of(gpu: Gpu) -> GpuFault | None:
    """Why this healthy GPU cannot be planned for as a whole: a setting of the driver; None where it can."""
    name = f"GPU {gpu.index} ({gpu.name})"
    if gpu.mode == "prohibited":
        return GpuFault(
            gpu.index,
            gpu.uuid,
            f"{name} lets no program compute (its compute mode is prohibited).",
            f"Allow it: sudo nvidia-smi -i {gpu.index} -c DEFAULT",
        )
    if gpu.mig:
        return GpuFault(gpu.index, gpu.uuid, *_divided(gpu, name))
    return None


def _divided(gpu: Gpu, name: str) -> tuple[str, str]:
    """Of a GPU that MIG divides: what, and the fix."""
    whole = f"sudo nvidia-smi -i {gpu.index} -mig 0"
    if not gpu.instances:
        return (
            f"{name} is in MIG mode and has no instance that programs could use.",
            f"Make it whole: {whole} (or create instances: nvidia-smi mig -cgi)",
        )
    parts = ", ".join(f"{instance_size(part)} ({part.uuid})" for part in gpu.instances)
    freest = max(gpu.instances, key=lambda part: part.free)
    return (
        f"{name} is divided by MIG, so programs never see the whole of it; its instances are {parts}.",
        f"Serve on one of them: CUDA_VISIBLE_DEVICES={freest.uuid}, or make the GPU whole: {whole}",
    )


def instance_size(instance: GpuInstance) -> str:
    """The "3g.20gb" of "NVIDIA A100-SXM4-40GB MIG 3g.20gb"."""
    return instance.name.rpartition("MIG ")[2]


def ill(reading: GpuReading) -> tuple[GpuFault, ...]:
    """All GPUs of a reading that are broken or lost, in their order."""
    found = [fault for gpu in reading.gpus if (fault := fault_of(gpu)) is not None]
    return tuple(sorted((*reading.faults, *found), key=lambda fault: fault.index))


def left_out(reading: GpuReading) -> tuple[GpuFault, ...]:
    """These, and those that settings bar from being planned for."""
    faults = ill(reading)
    known = {fault.index for fault in faults}
    barred = [barred_of(gpu) for gpu in reading.gpus if gpu.index not in known]
    return tuple(sorted((*faults, *(fault for fault in barred if fault)), key=lambda fault: fault.index))


def warnings_of(gpu: Gpu) -> dict[str, str]:
    """What slows a GPU down or may become a fault, as sentences by kind: throttled, correctable, remap."""
    health, name = gpu.health, f"GPU {gpu.index} ({gpu.name})"
    warnings: dict[str, str] = {}
    if health.throttled:
        warm = f" at {health.temperature} °C" if health.temperature is not None else ""
        warnings["throttled"] = f"{name} runs slower than it could{warm}: {', '.join(health.throttled)}."
    if count := health.correctable:
        errors = "an error" if count == 1 else f"{count} errors"
        warnings["correctable"] = f"{name} has corrected {errors} in its memory since the driver was loaded."
    if health.remap_pending:
        warnings["remap"] = f"{name} has a broken row of memory that the next reset replaces by a spare one."
    return warnings
