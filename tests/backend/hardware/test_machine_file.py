from __future__ import annotations

import textwrap
from pathlib import Path

import msgspec
import pytest

from backend.errors import SettingError
from backend.hardware.gpu import GpuLink
from backend.hardware.machine_file import read_hardware_file
from backend.hardware.specification import parse_hardware
from tests.fakes.machines import paired_a100

GIB = 1 << 30

FULL = """
name: the cupboard
network: 10gbe
machines:
  - count: 2
    gpus:
      - {gpu: RTX-3090, count: 2, free: 20GiB, pcie: 4.0 x8}
      - RTX-A6000
    link: nvlink-pairs
    links:
      - {between: [2, 1], peer: true}
    ram: 128GiB
    free_ram: 100GiB
    cpu: {name: AMD EPYC 7302P, cores: 16, features: [avx2, avx512f]}
  - gpus:
      - {gpu: V100-SXM2, memory: 16GiB}
      - {gpu: H100 NVL, count: 2, memory: 94GiB, bandwidth: 3900, capability: 9.0, nvlink: 300, pcie: 5.0 x16}
    links:
      - {between: [1, 2], nvlink: 300}
"""


def file(folder: Path, text: str, name: str = "machines.yaml") -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return path


def test_machines_are_described_in_full(tmp_path: Path) -> None:
    cluster = parse_hardware(str(file(tmp_path, FULL)))
    first, second, third = cluster.machines
    assert cluster.name == "the cupboard, 10 Gb/s Ethernet, TCP"
    assert len(first.gpus) == len(second.gpus) == 3
    assert {gpu.uuid for gpu in first.gpus}.isdisjoint(gpu.uuid for gpu in second.gpus)
    assert [gpu.free for gpu in first.gpus] == [20 * GIB, 20 * GIB, int(47.5 * GIB)]
    assert [gpu.pcie_width for gpu in first.gpus] == [8, 8, 16]
    assert first.link(0, 1) == GpuLink(0, 1, "nvlink", 56.25, True)
    assert first.link(1, 2) == GpuLink(1, 2, "host bridge", 0.0, peer=True)
    assert first.link(0, 2) == GpuLink(0, 2, "host bridge", 0.0, peer=False)
    assert (first.memory.total, first.memory.available) == (128 * GIB, 100 * GIB)
    assert (first.cpu.name, first.cpu.cores, first.cpu.features) == ("AMD EPYC 7302P", 16, ("avx2", "avx512f"))
    assert (third.gpus[0].name, third.gpus[0].total) == ("Tesla V100-SXM2-32GB", 16 * GIB)
    assert (third.gpus[1].name, third.gpus[1].capability, third.gpus[1].bandwidth) == ("H100 NVL", (9, 0), 3900.0)
    assert (third.gpus[1].pcie_generation, third.gpus[1].total) == (5, 94 * GIB)
    assert third.link(1, 2) == GpuLink(1, 2, "nvlink", 300.0, True)


def test_a_network_may_be_measured(tmp_path: Path) -> None:
    network = "{bandwidth: 12.5, reached: 9, latency_us: 20, name: the lab's}"
    cluster = read_hardware_file(file(tmp_path, f"network: {network}\nmachines: [{{count: 2, gpus: [H100]}}]"))
    assert cluster.network is not None
    assert cluster.network.name == "the lab's"
    assert (cluster.network.bandwidth, cluster.network.reached) == (12.5, 9.0)
    assert cluster.network.latency == pytest.approx(2e-5)


def test_what_doctor_prints_elsewhere_is_read_as_it_was(tmp_path: Path) -> None:
    machine = paired_a100()
    printed = {"serves": True, "findings": [], "machine": machine}
    (tmp_path / "other.json").write_bytes(msgspec.json.format(msgspec.json.encode(printed), indent=1))
    (tmp_path / "bare.json").write_bytes(msgspec.json.encode(machine))
    assert read_hardware_file(tmp_path / "other.json").machines == (machine,)
    assert read_hardware_file(tmp_path / "bare.json").machines == (machine,)
    both = file(tmp_path, "network: ib-hdr\nmachines:\n  - recorded: other.json\n  - gpus: [H100]\n")
    cluster = read_hardware_file(both)
    assert cluster.machines[0] == machine
    assert not cluster.local


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("machines: [", "is no YAML"),
        ("[1, 2]", "describes no hardware"),
        ("name: nothing", "describes no machine"),
        ("machines: [{gpus: [H900]}]", "give its memory, bandwidth (GB/s) and capability"),
        ("machines: [{gpu: [H100]}]", "gpu"),
        ("machines: [{gpus: [{gpu: H100, memory: much}]}]", "is not a size"),
        ("machines: [{gpus: [{gpu: H100, count: 0}]}]", "counts 0"),
        ("machines: [{count: 1000, gpus: [H100]}]", "counts 1000"),
        ("machines: [{gpus: [H100, H100], link: rope}]", "'rope'"),
        ("machines: [{gpus: [H100, H100], links: [{between: [0, 5], nvlink: 3}]}]", "joins GPUs 0 and 5"),
        ("network: wet string\nmachines: [{gpus: [H100], count: 2}]", "No network is known as 'wet string'"),
        ("machines: [{recorded: elsewhere.json}]", "There is no file"),
        ("machine: {cpu: 3}", "describes no hardware"),
        ("\x00", "is no YAML"),
    ],
)
def test_a_file_that_is_no_description_says_why(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(SettingError) as caught:
        read_hardware_file(file(tmp_path, text))
    assert words in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").mkdir()
    with pytest.raises(SettingError, match="cannot be read"):
        read_hardware_file(tmp_path / "a.yaml")
