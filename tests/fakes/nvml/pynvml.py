"""A pynvml whose driver is a file: put before the real one on PYTHONPATH of a program that asks the driver.

SHARDWISE_FAKE_NVML names a JSON file, read anew at each nvmlInit (`tests.fakes.topologies` has such states). What a
state does not say is not supported, as on many a GPU. Constants and errors are the real module's.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from importlib.machinery import PathFinder
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def _real() -> Any:
    own = Path(__file__).resolve().parent
    spec = PathFinder.find_spec("pynvml", [path for path in sys.path if Path(path).resolve() != own])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_nvml = _real()
globals().update(
    {name: value for name, value in vars(_nvml).items() if name.isupper() or name.startswith("nvmlClocks")}
)
NVMLError = _nvml.NVMLError
globals()["nvmlEventTypeXidCriticalError"] = _nvml.nvmlEventTypeXidCriticalError
_state: dict[str, Any] = {}


def _error(name: str) -> Exception:
    return NVMLError(getattr(_nvml, f"NVML_ERROR_{name}"))


def nvmlInit() -> None:  # noqa: N802
    _state.clear()
    _state.update(json.loads(Path(os.environ["SHARDWISE_FAKE_NVML"]).read_text()))
    if _state.get("hangs"):
        time.sleep(3600)
    if "init" in _state:
        raise _error(_state["init"])


def nvmlShutdown() -> None:  # noqa: N802
    pass


def nvmlSystemGetDriverVersion() -> str:  # noqa: N802
    return _state["driver"]


def nvmlSystemGetCudaDriverVersion_v2() -> int:  # noqa: N802
    return _state["cuda"]


def nvmlDeviceGetCount() -> int:  # noqa: N802
    return len(_state["gpus"])


def nvmlDeviceGetHandleByIndex(index: int) -> dict[str, Any]:  # noqa: N802
    gpu = _state["common"] | _state["gpus"][index] | {"index": index}
    if "fails" in gpu:
        raise _error(gpu["fails"])
    return gpu


def _field(gpu: dict[str, Any], name: str) -> Any:
    if gpu.get("lost_at") == name:
        raise _error("GPU_IS_LOST")
    if name not in gpu:
        raise _error("NOT_SUPPORTED")
    return gpu[name]


def nvmlDeviceGetUUID(gpu: dict[str, Any]) -> str:  # noqa: N802
    return _field(gpu, "uuid")


def nvmlDeviceGetName(gpu: dict[str, Any]) -> str:  # noqa: N802
    return _field(gpu, "name")


def nvmlDeviceGetMemoryInfo(gpu: dict[str, Any]) -> Any:  # noqa: N802
    total = _field(gpu, "total_mib") << 20
    return SimpleNamespace(total=total, free=gpu.get("free_mib", gpu["total_mib"]) << 20)


def nvmlDeviceGetCudaComputeCapability(gpu: dict[str, Any]) -> list[int]:  # noqa: N802
    return _field(gpu, "capability")


def nvmlDeviceGetComputeRunningProcesses(gpu: dict[str, Any]) -> list[Any]:  # noqa: N802
    return _processes(gpu, "processes")


def nvmlDeviceGetGraphicsRunningProcesses(gpu: dict[str, Any]) -> list[Any]:  # noqa: N802
    return _processes(gpu, "graphics")


def nvmlDeviceGetMPSComputeRunningProcesses(gpu: dict[str, Any]) -> list[Any]:  # noqa: N802
    return _processes(gpu, "mps_processes")


def _processes(gpu: dict[str, Any], kind: str) -> list[Any]:
    """Each a process's id and MiB, or null where this GPU does not tell."""
    return [
        SimpleNamespace(pid=pid, usedGpuMemory=None if mib is None else mib << 20) for pid, mib in _field(gpu, kind)
    ]


def nvmlSystemGetProcessName(pid: int) -> str:  # noqa: N802
    names = _state.get("names", {})
    if str(pid) not in names:
        raise _error("NOT_FOUND")
    return names[str(pid)]


def nvmlDeviceGetComputeMode(gpu: dict[str, Any]) -> int:  # noqa: N802
    return _field(gpu, "compute_mode")


def nvmlDeviceGetVirtualizationMode(gpu: dict[str, Any]) -> int:  # noqa: N802
    return _field(gpu, "virtualization")


def nvmlDeviceGetMigMode(gpu: dict[str, Any]) -> list[int]:  # noqa: N802
    return _field(gpu, "mig")


def nvmlDeviceGetMaxMigDeviceCount(gpu: dict[str, Any]) -> int:  # noqa: N802
    _field(gpu, "mig")
    return 7


def nvmlDeviceGetMigDeviceHandleByIndex(gpu: dict[str, Any], index: int) -> dict[str, Any]:  # noqa: N802
    if index >= len(_field(gpu, "instances")):
        raise _error("NOT_FOUND")
    return gpu["instances"][index]


def nvmlDeviceGetPciInfo(gpu: dict[str, Any]) -> Any:  # noqa: N802
    return SimpleNamespace(busId=_field(gpu, "bus_id").encode())


def nvmlDeviceGetMaxPcieLinkGeneration(gpu: dict[str, Any]) -> int:  # noqa: N802
    return _field(gpu, "pcie")[0]


def nvmlDeviceGetCurrPcieLinkWidth(gpu: dict[str, Any]) -> int:  # noqa: N802
    return _field(gpu, "pcie")[1]


def nvmlDeviceGetMaxClockInfo(gpu: dict[str, Any], kind: int) -> int:  # noqa: N802
    assert kind == _nvml.NVML_CLOCK_MEM
    return _field(gpu, "memory_clock")


def nvmlDeviceGetMemoryBusWidth(gpu: dict[str, Any]) -> int:  # noqa: N802
    return _field(gpu, "memory_bits")


def nvmlDeviceGetTotalEccErrors(gpu: dict[str, Any], kind: int, counter: int) -> int:  # noqa: N802
    assert counter == _nvml.NVML_VOLATILE_ECC
    return _field(gpu, "uncorrectable" if kind == _nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED else "correctable")


def nvmlDeviceGetRemappedRows(gpu: dict[str, Any]) -> list[int]:  # noqa: N802
    return _field(gpu, "remapped_rows")


def nvmlDeviceGetRetiredPagesPendingStatus(gpu: dict[str, Any]) -> int:  # noqa: N802
    return _field(gpu, "retirement_pending")


def nvmlDeviceGetCurrentClocksThrottleReasons(gpu: dict[str, Any]) -> int:  # noqa: N802
    return _field(gpu, "throttle_reasons")


def nvmlDeviceGetTemperature(gpu: dict[str, Any], sensor: int) -> int:  # noqa: N802
    return _field(gpu, "temperature")


def nvmlDeviceGetNvLinkState(gpu: dict[str, Any], link: int) -> int:  # noqa: N802
    if link >= len(_field(gpu, "nvlinks")):
        raise _error("INVALID_ARGUMENT")
    return int(gpu["nvlinks"][link] is not None)


def nvmlDeviceGetNvLinkRemoteDeviceType(gpu: dict[str, Any], link: int) -> int:  # noqa: N802
    if gpu["nvlinks"][link] == "switch":
        return _nvml.NVML_NVLINK_DEVICE_TYPE_SWITCH
    return _nvml.NVML_NVLINK_DEVICE_TYPE_GPU


def nvmlDeviceGetNvLinkRemotePciInfo(gpu: dict[str, Any], link: int) -> Any:  # noqa: N802
    return SimpleNamespace(busId=gpu["nvlinks"][link].encode())


def nvmlDeviceGetNvLinkVersion(gpu: dict[str, Any], link: int) -> int:  # noqa: N802
    return _field(gpu, "nvlink_version")


def nvmlDeviceGetFieldValues(gpu: dict[str, Any], fields: list[int]) -> list[Any]:  # noqa: N802
    assert fields == [_nvml.NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON]
    value = SimpleNamespace(uiVal=_field(gpu, "nvlink_mbps"))
    return [SimpleNamespace(nvmlReturn=_nvml.NVML_SUCCESS, value=value)]


def nvmlDeviceGetTopologyCommonAncestor(one: dict[str, Any], other: dict[str, Any]) -> int:  # noqa: N802
    return _pair("ancestor", one, other)


def nvmlDeviceGetP2PStatus(one: dict[str, Any], other: dict[str, Any], capability: int) -> int:  # noqa: N802
    assert capability == _nvml.NVML_P2P_CAPS_INDEX_WRITE
    return _pair("p2p", one, other)


def _pair(name: str, one: dict[str, Any], other: dict[str, Any]) -> int:
    """What the state says of a pair, else of all."""
    found = _state.get(f"{name}s", {}).get(f"{one['index']}-{other['index']}", _state.get(name))
    if found is None:
        raise _error("NOT_SUPPORTED")
    return found


def nvmlEventSetCreate() -> list[int]:  # noqa: N802
    return []


def nvmlDeviceRegisterEvents(gpu: dict[str, Any], kinds: int, events: list[int]) -> None:  # noqa: N802
    _field(gpu, "events")
    assert kinds == _nvml.nvmlEventTypeXidCriticalError
    events.append(gpu["index"])


def nvmlEventSetWait_v2(events: list[int], milliseconds: int) -> Any:  # noqa: N802
    """The state's next Xid of a registered GPU; each is told once."""
    xids = _state.setdefault("xids", [])
    if xids and xids[0][0] in events:
        index, code = xids.pop(0)
        device = nvmlDeviceGetHandleByIndex(index)
        return SimpleNamespace(device=device, eventType=_nvml.nvmlEventTypeXidCriticalError, eventData=code)
    time.sleep(milliseconds / 1000)
    raise _error("TIMEOUT")


def nvmlEventSetFree(events: list[int]) -> None:  # noqa: N802
    events.clear()


def nvmlDeviceGetIndex(gpu: dict[str, Any]) -> int:  # noqa: N802
    return gpu["index"]
