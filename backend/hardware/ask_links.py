"""Asks NVML what lies between each two GPUs. For the asking processes only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from types import MappingProxyType
from typing import Any

import pynvml

from backend.hardware.gpu import GpuLink, Way
from backend.hardware.nvml_value import value_or

_ANCESTORS: Mapping[int, Way] = MappingProxyType(
    {
        pynvml.NVML_TOPOLOGY_INTERNAL: "board",
        pynvml.NVML_TOPOLOGY_SINGLE: "switch",
        pynvml.NVML_TOPOLOGY_MULTIPLE: "switches",
        pynvml.NVML_TOPOLOGY_HOSTBRIDGE: "host bridge",
        pynvml.NVML_TOPOLOGY_NODE: "node",
        pynvml.NVML_TOPOLOGY_SYSTEM: "system",
    }
)
# GB/s of data over a link in one direction, by version (NVIDIA's table of generations). A driver tells the line's own
# rate, with the bits that its code adds: 26.562 of an H100's links (`nvidia-smi nvlink -s`), 25.781 of a V100's.
_SPEEDS = MappingProxyType({1: 20.0, 2: 25.0, 3: 25.0, 4: 25.0, 5: 50.0})
_WRITES = pynvml.NVML_P2P_CAPS_INDEX_WRITE


@dataclass(frozen=True, slots=True)
class _Ports:
    """A GPU's active NVLinks: how many lead to a switch, how many to each PCI address, and GB/s of one."""

    bus_id: str
    switch: int
    direct: Mapping[str, int]
    speed: float


def ask_links(handles: Mapping[int, Any]) -> tuple[GpuLink, ...]:
    """Every pair of these GPUs, by index. What the driver does not tell is "unknown".

    Raises NVMLError where a GPU is lost meanwhile.
    """
    ports = {index: _ports(handle) for index, handle in handles.items()} if len(handles) > 1 else {}
    return tuple(
        _link(first, second, handles, ports[first], ports[second]) for first, second in combinations(sorted(handles), 2)
    )


def _link(first: int, second: int, handles: Mapping[int, Any], one: _Ports, other: _Ports) -> GpuLink:
    pair = handles[first], handles[second]
    peer = value_or(-1, lambda: int(pynvml.nvmlDeviceGetP2PStatus(*pair, _WRITES))) == pynvml.NVML_P2P_STATUS_OK
    if one.switch and other.switch:
        speed = min(one.switch * one.speed, other.switch * other.speed)
        return GpuLink(first, second, "nvswitch", speed, peer)
    if count := one.direct.get(other.bus_id, 0):
        return GpuLink(first, second, "nvlink", count * min(one.speed, other.speed), peer)
    ancestor = value_or(-1, lambda: int(pynvml.nvmlDeviceGetTopologyCommonAncestor(*pair)))
    return GpuLink(first, second, _ANCESTORS.get(ancestor, "unknown"), 0.0, peer)


def _ports(handle: Any) -> _Ports:
    switch, direct, speed = 0, Counter[str](), 0.0
    for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
        state = value_or(None, lambda link=link: pynvml.nvmlDeviceGetNvLinkState(handle, link))
        if state is None:  # the GPU has no more links, or none at all
            break
        if state != pynvml.NVML_FEATURE_ENABLED:
            continue
        speed = speed or _speed(handle, link)
        kind = value_or(None, lambda link=link: pynvml.nvmlDeviceGetNvLinkRemoteDeviceType(handle, link))
        if kind == pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH:
            switch += 1
        else:
            remote = value_or(None, lambda link=link: pynvml.nvmlDeviceGetNvLinkRemotePciInfo(handle, link))
            direct[_bus_id(remote)] += remote is not None
    return _Ports(_bus_id(value_or(None, lambda: pynvml.nvmlDeviceGetPciInfo(handle))), switch, direct, speed)


def _speed(handle: Any, link: int) -> float:
    told = value_or(
        None, lambda: pynvml.nvmlDeviceGetFieldValues(handle, [pynvml.NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON])
    )
    most = _SPEEDS.get(value_or(0, lambda: int(pynvml.nvmlDeviceGetNvLinkVersion(handle, link))))
    if told and told[0].nvmlReturn == pynvml.NVML_SUCCESS and told[0].value.uiVal:
        line = told[0].value.uiVal / 1000
        return line if most is None else min(line, most)
    return most or 25.0


def _bus_id(info: Any) -> str:
    """A PCI address in one spelling: NVML pads domains to eight digits or four, in either case."""
    if info is None:
        return ""
    text = info.busId.decode() if isinstance(info.busId, bytes) else str(info.busId)
    domain, _, rest = text.partition(":")
    return f"{domain[-4:]}:{rest}".lower()
