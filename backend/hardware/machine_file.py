"""Reads a file that describes machines in full, or what `shardwise doctor --json` printed elsewhere, as a Cluster.

```yaml
name: the cupboard              # all but machines may be left out
network: 10gbe                  # or {name: .., bandwidth: 1.25, reached: 0.9, latency_us: 42}: GB/s in one direction
machines:
  - count: 2                    # so many alike
    gpus:
      - {gpu: RTX-3090, count: 2, free: 20GiB, pcie: 4.0 x8}
      - {gpu: V100-SXM2, memory: 16GiB}
      - {gpu: H100 NVL, memory: 94GiB, bandwidth: 3900, capability: 9.0, nvlink: 300}   # a kind that no table has
      - RTX-A6000
    link: nvlink-pairs          # options as in a hardware string: pcie, nvlink, p2p, ...
    links:                      # single pairs, by position: GB/s of NVLink in one direction, or peer writes over PCIe
      - {between: [0, 1], nvlink: 56.25}
      - {between: [1, 2], peer: false}
    ram: 128GiB
    free_ram: 100GiB
    cpu: {name: AMD EPYC 7302P, cores: 16, features: [avx2]}
  - recorded: other.json        # what `shardwise doctor --json` printed there, beside this file
```
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml
from msgspec import Struct
from msgspec.structs import replace

from backend.errors import SettingError
from backend.hardware.built_machine import GpuGroup, build_machine, main_memory, usual_cpu
from backend.hardware.cluster import Cluster, Network
from backend.hardware.cpu import Cpu
from backend.hardware.gpu import GpuLink
from backend.hardware.gpu_names import find_gpu
from backend.hardware.gpu_table import GpuFacts
from backend.hardware.machine import Machine
from backend.hardware.memory import Memory
from backend.hardware.network_table import network_named
from backend.hardware.specification import join
from backend.hardware.specification_options import MachineOptions, link_option
from backend.sizes import parse_size

_HINT = "`shardwise fit --help` tells of hardware files."
_MICROSECOND = 1e-6
_MOST = 64

_Kind = TypeVar("_Kind")


class _Gpu(Struct, frozen=True, forbid_unknown_fields=True):
    gpu: str
    count: int = 1
    memory: str | None = None
    free: str | None = None
    pcie: str | None = None
    bandwidth: float | None = None
    capability: float | None = None
    nvlink: float | None = None


class _Link(Struct, frozen=True, forbid_unknown_fields=True):
    between: tuple[int, int]
    nvlink: float = 0.0
    peer: bool | None = None


class _Cpu(Struct, frozen=True, forbid_unknown_fields=True):
    name: str = ""
    cores: int = 16
    features: tuple[str, ...] = ("avx2",)


class _Machine(Struct, frozen=True, forbid_unknown_fields=True):
    count: int = 1
    gpus: tuple[str | _Gpu, ...] = ()
    link: str = ""
    links: tuple[_Link, ...] = ()
    ram: str | None = None
    free_ram: str | None = None
    cpu: _Cpu | None = None
    recorded: str = ""


class _Network(Struct, frozen=True, forbid_unknown_fields=True):
    bandwidth: float
    reached: float
    latency_us: float
    name: str = "network"


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    machines: tuple[_Machine, ...] = ()
    network: str | _Network | None = None
    name: str = ""


class _Recorded(Struct, frozen=True):
    """What doctor prints has more than the machine."""

    machine: Machine


def read_hardware_file(path: Path) -> Cluster:
    """The machines that a file describes.

    Raises:
        SettingError: it cannot be read, is no YAML, or says something that is not understood; the message says where.
    """
    content = _load(path)
    if isinstance(content, dict) and ({"machine"} <= content.keys() or {"cpu", "memory"} <= content.keys()):
        return join([_machine_of(path, content)])
    described = _convert(path, content, _File)
    if not described.machines:
        raise SettingError(f"{path} describes no machine.", "It has no 'machines', or none in them.", _HINT)
    machines: list[Machine] = []
    for machine in described.machines:
        for _ in range(_count(path, machine.count)):
            machines.append(_machine(path, machine, len(machines)))
    return join(machines, _network(described.network), described.name)


def _load(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingError(f"There is no file {path}.", "", "Name a file that describes machines.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"{path} cannot be read.", f"{error}.") from None
    except yaml.YAMLError as error:
        raise SettingError(f"{path} is no YAML.", " ".join(str(error).split()) + ".", _HINT) from None


def _convert(path: Path, content: Any, kind: type[_Kind]) -> _Kind:
    try:
        return msgspec.convert(content, kind, strict=False)
    except msgspec.ValidationError as error:
        raise SettingError(f"{path} describes no hardware.", f"{error}.", _HINT) from None


def _machine_of(path: Path, content: dict[str, Any]) -> Machine:
    """A Machine that was written as one."""
    if "machine" in content:
        return _convert(path, content, _Recorded).machine
    return _convert(path, content, Machine)


def _machine(path: Path, described: _Machine, number: int) -> Machine:
    if described.recorded:
        other = path.parent / Path(described.recorded).expanduser()
        content = _load(other)
        if not isinstance(content, dict):
            raise SettingError(f"{other} describes no machine.", "", _HINT)
        return _machine_of(other, content)
    groups = [_group(path, gpu if isinstance(gpu, _Gpu) else _Gpu(gpu)) for gpu in described.gpus]
    machine = build_machine(
        groups, _options(path, described.link).wiring, _memory(described), _cpu(described.cpu), number
    )
    return replace(machine, links=_joined(path, machine, described.links))


def _group(path: Path, described: _Gpu) -> GpuGroup:
    options = _options(path, f"pcie {described.pcie}") if described.pcie else MachineOptions()
    return GpuGroup(
        facts=_facts(described),
        count=_count(path, described.count),
        total=parse_size(described.memory) if described.memory else None,
        free=parse_size(described.free) if described.free else None,
        generation=options.generation,
        width=options.width,
    )


def _facts(described: _Gpu) -> GpuFacts:
    """The table's; or the file's own, where it says all that is needed of a kind that the table does not have."""
    own = (described.memory, described.bandwidth, described.capability)
    if None not in own:
        memory, bandwidth, capability = parse_size(described.memory or ""), described.bandwidth, described.capability
        return GpuFacts(
            name=described.gpu,
            nvml_match=described.gpu,
            mem_total_gib_reported=memory / (1 << 30),
            mem_bw_gbs=bandwidth or 0.0,
            compute_capability=str(capability),
            pcie=(described.pcie or "4.0 x16").replace("gen", ""),
            source=("the hardware file",),
            nvlink_gen="bridge" if described.nvlink else None,
            nvlink_gbs_bidir_per_gpu=2 * described.nvlink if described.nvlink else None,
        )
    try:
        return find_gpu(described.gpu).facts
    except SettingError as error:
        raise SettingError(
            error.what, error.why, "Use one of them, or give its memory, bandwidth (GB/s) and capability as well."
        ) from None


def _options(path: Path, words: str) -> MachineOptions:
    """What is said of links, by commas."""
    options = MachineOptions()
    for word in (part.strip() for part in words.split(",")):
        if not word:
            continue
        changed = link_option(options, word)
        if changed is None:
            raise SettingError(
                f"{word!r} in {path} says nothing about links.", "", "Write nvlink, nvlink-pairs or pcie."
            )
        options = changed
    return options


def _memory(described: _Machine) -> Memory | None:
    if not described.ram:
        return None
    memory = main_memory(parse_size(described.ram))
    return memory if not described.free_ram else Memory(memory.total, min(memory.total, parse_size(described.free_ram)))


def _cpu(described: _Cpu | None) -> Cpu | None:
    if described is None:
        return None
    usual = usual_cpu(max(1, described.cores), described.features)
    return replace(usual, name=described.name or usual.name)


def _joined(path: Path, machine: Machine, described: tuple[_Link, ...]) -> tuple[GpuLink, ...]:
    """The links with those pairs changed that the file names."""
    links = {(link.first, link.second): link for link in machine.links}
    for link in described:
        pair = (min(link.between), max(link.between))
        if pair not in links:
            raise SettingError(
                f"{path} joins GPUs {pair[0]} and {pair[1]}.", f"The machine has {len(machine.gpus)} GPUs, from 0 on."
            )
        found = links[pair]
        if link.nvlink:
            found = GpuLink(*pair, "nvlink", link.nvlink, True)
        links[pair] = replace(found, peer=found.peer if link.peer is None else link.peer)
    return tuple(links.values())


def _network(described: str | _Network | None) -> Network | None:
    if described is None or isinstance(described, str):
        return None if described is None else network_named(described)
    return Network(
        "", described.name, described.bandwidth, described.reached, described.latency_us * _MICROSECOND, "the file"
    )


def _count(path: Path, count: int) -> int:
    if not 1 <= count <= _MOST:
        raise SettingError(f"{path} counts {count}.", f"Counts may be 1 to {_MOST}.")
    return count
