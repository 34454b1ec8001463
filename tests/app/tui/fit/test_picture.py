"""Pictures of machines: every line fits, every GPU is there with its memory, links and faults are named."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from app.tui.fit.machine_picture import bus_name, gpu_rows, short_name
from app.tui.fit.picture import picture_lines
from backend.hardware.cluster import Cluster, Network
from backend.hardware.gpu import GpuFault, GpuHolder
from backend.hardware.machine import Machine
from backend.hardware.peer import PeerPath
from tests.fakes import machines
from tests.fakes.machines import GIB, gpu, gpu_machine

MACHINES = {
    "dgx": machines.dgx_h100(),
    "pairs": machines.paired_a100(),
    "bridge": machines.bridged_3090(),
    "pcie": machines.pcie_3090(),
    "unequal": machines.unequal(),
    "one": gpu_machine(),
    "none": machines.cpu_machine(),
    "sixteen": gpu_machine(*(gpu(number) for number in range(16))),
    "seven": gpu_machine(*(gpu(number, numa_node=number // 4) for number in range(7))),
}


def text_of(machine: Machine, width: int = 76) -> str:
    return of_cluster(Cluster((machine,), "a machine", local=True), width)


def of_cluster(cluster: Cluster, width: int) -> str:
    return "\n".join(line.plain for line in picture_lines(cluster, width))


@pytest.mark.parametrize("width", [44, 50, 58, 76, 120])
@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_no_line_is_wider_than_its_room_and_every_gpu_has_a_box(machine: Machine, width: int) -> None:
    text = text_of(machine, width)
    assert max(map(len, text.splitlines())) <= width
    for each in machine.gpus:
        assert f"GPU {each.index}─" in text or f"GPU {each.index}╨" in text
    assert text.count(f"{24 * GIB / GIB:.1f}/24.0") == sum(each.total == 24 * GIB for each in machine.gpus)


def test_eight_gpus_fit_on_a_small_terminal() -> None:
    assert len(text_of(MACHINES["dgx"]).splitlines()) <= 15


def test_a_switch_is_one_bus_and_the_processors_are_told_apart() -> None:
    text = text_of(MACHINES["dgx"])
    assert "NVSwitch 450 GB/s each way" in text
    assert "NUMA 0" in text
    assert "NUMA 1" in text
    assert "PCIe 5 x16" in text


def test_pairs_stand_side_by_side_with_a_line_between_them_and_others_without() -> None:
    row = next(line for line in text_of(MACHINES["pairs"]).splitlines() if "A100" in line)
    assert row.count("╞═╡") == 2
    assert "NVLink 0-1, 2-3: 300 GB/s each way" in text_of(MACHINES["pairs"])


def test_pairs_that_are_not_neighbours_by_number_become_neighbours() -> None:
    four = machines.paired_a100()
    crossed = tuple(
        replace(link, way="nvlink", nvlink=300.0)
        if (link.first, link.second) in ((0, 2), (1, 3))
        else replace(link, way="node", nvlink=0.0)
        for link in four.links
    )
    rows = gpu_rows(replace(four, links=crossed), 4)
    assert [each.index for each in rows[0]] == [0, 2, 1, 3]


def test_three_on_pcie_have_no_bus_and_say_that_they_cannot_write_to_each_other() -> None:
    assert bus_name(MACHINES["pcie"]) == ""
    assert "no direct writes" in " ".join(text_of(MACHINES["pcie"]).split())
    assert "╞" not in text_of(MACHINES["pcie"])


def test_without_a_gpu_the_processor_and_its_memory_are_shown() -> None:
    text = text_of(MACHINES["none"])
    assert "Test CPU" in text
    assert "20.0 GiB free of 24.0 GiB" in text
    assert "No GPU here" in text


def test_what_is_left_out_held_or_broken_is_named() -> None:
    first, second = gpu(0, free=5 * GIB, holders=(GpuHolder(42, "py\x1b[2Jthon", 19 * GIB),)), gpu(1)
    machine = gpu_machine(
        first,
        second,
        left_out=(GpuFault(2, "GPU-2", "GPU 2 is divided by MIG", "Make it whole"),),
        peers=(PeerPath(first.uuid, second.uuid, problem="a copy did not end within 20 s"),),
    )
    text = " ".join(text_of(machine).split())
    assert "5.0/24.0" in text
    assert "19 GiB of GPU 0 (Test GPU) are held by python (42, 19 GiB)" in text
    assert "Left out: GPU 2 is divided by MIG Make it whole" in text
    assert "GPU 0 and GPU 1: a copy did not end" in text
    assert "\x1b" not in text


def test_a_driver_that_does_not_answer_is_no_machine_without_gpus() -> None:
    text = text_of(replace(MACHINES["none"], gpu_problem="The driver did not answer within 10 s"))
    assert "did not answer" in text
    assert "No GPU here" not in text


def test_nodes_are_joined_by_their_network_and_counted_when_they_are_many() -> None:
    cluster = Cluster((machines.paired_a100(),) * 5, "x", network=Network("ib", "InfiniBand HDR", 25, 23.5, 5e-6))
    text = of_cluster(cluster, 76)
    assert "InfiniBand HDR, 23.5 GB/s a GPU" in text
    assert "nodes 3 to 5: the same" in text
    assert text.count("GPU 0─") == 2


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("NVIDIA H100 80GB HBM3", "H100 80GB"),
        ("NVIDIA GeForce RTX 3090", "RTX 3090"),
        ("NVIDIA A100 80GB PCIe", "A100 80GB"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ad…"),
        ("", "unnamed"),
    ],
)
def test_names_are_short(name: str, short: str) -> None:
    assert short_name(name, 12) == short
