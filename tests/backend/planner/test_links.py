"""What joins GPUs, and what adding up over it takes."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from backend.hardware.machine import Machine
from backend.hardware.peer import PeerPath
from backend.planner.groups import best_group, weights_of
from backend.planner.links import Link, link_of, pair_link
from tests.fakes.machines import (
    GIB,
    bridged_3090,
    consumer,
    dgx_h100,
    gpu_machine,
    paired_a100,
    pairs,
    pcie_3090,
    unequal,
)

SMALL, LARGE = 16 << 10, 512 << 20


@pytest.mark.parametrize(
    ("machine", "ranks", "microseconds", "busbw"),
    # Measured: H100 6.2/9.5/15.6 us and 319/350/445 GB/s, L40S over PCIe 4 7/12/23 us and 20/5.2/1.4 GB/s.
    [(dgx_h100(), 2, 6.2, 319), (dgx_h100(), 4, 9.5, 350), (dgx_h100(), 8, 15.6, 445), (pcie_3090(2, True), 2, 7, 20)],
)
def test_predictions_are_near_what_was_measured(machine: Machine, ranks: int, microseconds: float, busbw: float):
    link = link_of(machine, range(ranks))
    assert link.all_reduce_seconds(ranks, 0) * 1e6 == pytest.approx(microseconds, rel=0.12)
    bus = 2 * (ranks - 1) / ranks * LARGE / link.all_reduce_seconds(ranks, LARGE) / 1e9
    assert bus == pytest.approx(busbw, rel=0.12)


def test_the_worst_pair_is_the_groups_link() -> None:
    machine = paired_a100()
    assert [pair_link(machine, *pair).kind for pair in ((0, 1), (2, 3), (1, 2))] == ["nvlink", "nvlink", "pcie"]
    assert link_of(machine, (0, 1)).kind == "nvlink"
    assert link_of(machine, (0, 1, 2)).kind == "pcie"
    assert not link_of(machine, (0, 1, 2)).near


def test_links_are_ordered_by_what_they_are_worth() -> None:
    switch, bridge = link_of(dgx_h100(), (0, 1)), link_of(bridged_3090(), (0, 1))
    direct, staged = link_of(pcie_3090(2, True), (0, 1)), link_of(pcie_3090(2), (0, 1))
    assert switch.rank > bridge.rank > direct.rank > staged.rank
    for count in (SMALL, LARGE):
        times = [link.all_reduce_seconds(2, count) for link in (switch, bridge, direct, staged)]
        assert times[0] <= times[1]
        assert times[2] < times[3]


def test_a_driver_that_tells_nothing_is_not_believed_to_have_peers() -> None:
    machine = gpu_machine(*consumer(2, pcie_generation=0, pcie_width=0))
    assert pair_link(machine, 0, 1).kind == "host"
    assert pair_link(machine, 0, 1).bandwidth > 0


def peer_of(machine: Machine, first: int, second: int, **found: object) -> PeerPath:
    return PeerPath(machine.gpus[first].uuid, machine.gpus[second].uuid, **found)  # pyright: ignore[reportArgumentType]


def test_what_a_probe_found_counts_more_than_what_the_driver_says() -> None:
    machine = bridged_3090()
    slow = replace(machine, peers=(peer_of(machine, 1, 0, direct=True, gigabytes=20.0),))
    assert pair_link(slow, 0, 1) == Link("nvlink", 25.0, True, "NVLink (25 GB/s each way)")
    wrong = replace(machine, peers=(peer_of(machine, 0, 1, direct=True, problem="what arrives is not what was sent"),))
    assert pair_link(wrong, 0, 1).kind == "host"
    assert "GPUs 0 and 1" in pair_link(wrong, 0, 1).note
    machine = pcie_3090(2, peer=True)
    assert pair_link(machine, 0, 1).kind == "pcie"
    assert pair_link(replace(machine, peers=(peer_of(machine, 0, 1),)), 0, 1).kind == "host"


def test_groups_stay_within_one_nvlink_domain() -> None:
    machine = paired_a100()
    everyone = range(4)
    assert best_group(machine, everyone, 2) == (0, 1)
    assert best_group(machine, everyone, 4) == (0, 1, 2, 3)
    busy = replace(machine, gpus=(replace(machine.gpus[0], free=9 * GIB), *machine.gpus[1:]))
    assert best_group(busy, everyone, 2) == (2, 3)
    assert best_group(busy, [0, 1, 2], 2) == (0, 1)
    assert best_group(dgx_h100(), range(8), 3) == (0, 1, 2)


def test_a_bad_pair_is_avoided() -> None:
    links = pairs(3, "host bridge")
    machine = gpu_machine(*consumer(3), links=tuple(links.values()))
    machine = replace(machine, peers=(peer_of(machine, 0, 1, problem="a copy did not end within 20 s"),))
    assert best_group(machine, range(3), 2) == (0, 2)


def test_parts_go_by_speed_then_by_memory_and_small_differences_count_for_nothing() -> None:
    machine = unequal()
    by_speed, by_memory = weights_of(machine, (0, 1), 0.0), weights_of(machine, (0, 1), 1.0)
    assert by_speed[0] / by_speed[1] == pytest.approx(936 / 768)
    assert by_memory[1] / by_memory[0] == pytest.approx(2.0)
    desktop = replace(bridged_3090(), gpus=(bridged_3090().gpus[0], replace(bridged_3090().gpus[1], free=22 * GIB)))
    assert weights_of(desktop, (0, 1), 1.0) == (0.5, 0.5)
