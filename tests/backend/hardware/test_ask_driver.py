"""The programs that ask the driver, over a fake one: what they make of topologies, and of GPUs that are ill."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from backend.engine_settings import EngineSettings
from backend.hardware.gpu import Gpu, GpuHealth, GpuLink
from backend.hardware.health import fault_of, left_out, warnings_of
from backend.hardware.machine import read_machine
from backend.hardware.nvml import program, read_gpus
from backend.planner.decide import decide
from tests.backend.planner.test_decide import FILES
from tests.fakes.machines import gpu
from tests.fakes.models import LLAMA_70B
from tests.fakes.nvml_state import NvmlState

THERMAL, IDLE, POWER_CAP = 0x20, 0x1, 0x4


@pytest.fixture
def driver(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NvmlState:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("SHARDWISE_CACHE_HOME", str(tmp_path / "cache"))
    return NvmlState.install(getattr(request, "param", "dgx-h100"), tmp_path, monkeypatch)


def on(topology: str) -> Any:
    return pytest.mark.parametrize("driver", [topology], indirect=True)


def links() -> dict[tuple[int, int], GpuLink]:
    return {(link.first, link.second): link for link in read_gpus().links}


def test_a_dgx_is_described(driver: NvmlState) -> None:
    reading = read_gpus()
    assert reading.problem == ""
    assert len(reading.gpus) == 8
    first = reading.gpus[0]
    assert (first.name, first.capability, first.cuda, first.driver) == (
        "NVIDIA H100 80GB HBM3",
        (9, 0),
        (13, 0),
        "580.65.06",
    )
    assert (first.bus_id, first.pcie_generation, first.pcie_width) == ("00000000:1B:00.0", 5, 16)
    assert first.bandwidth == pytest.approx(3352, abs=1)  # a data sheet says 3.35 TB/s
    assert first.health == GpuHealth(temperature=34)
    assert len(reading.links) == 28
    assert {(link.way, link.peer) for link in reading.links} == {("nvswitch", True)}
    assert reading.links[0].nvlink == 18 * 25.0  # the driver tells 26.562 with the line's code


def test_a_link_of_a_version_to_come_is_as_fast_as_the_driver_says(driver: NvmlState) -> None:
    for number in range(8):
        driver.change(number, nvlink_version=9, nvlink_mbps=100_000)
    assert links()[0, 1].nvlink == 18 * 100.0


@on("a100-pairs")
def test_bridges_join_pairs_whatever_the_spelling_of_addresses(driver: NvmlState) -> None:
    found = links()
    assert {pair for pair, link in found.items() if link.way == "nvlink"} == {(0, 1), (2, 3)}
    assert found[0, 1].nvlink == 12 * 25.0  # by the generation: this driver tells no speed
    assert (found[0, 2].way, found[0, 2].nvlink) == ("system", 0.0)


@on("rtx3090-bridge")
def test_a_consumers_bridge_is_worth_less(driver: NvmlState) -> None:
    found = links()
    assert (found[0, 1].way, found[0, 1].nvlink) == ("nvlink", pytest.approx(56.25, abs=0.01))
    assert read_gpus().gpus[0].bandwidth == pytest.approx(936, abs=1)
    assert read_gpus().gpus[0].health == GpuHealth(temperature=55)  # a power cap is no fault, and there is no ECC


@on("rtx3090-bridge")
def test_a_link_that_is_down_does_not_count(driver: NvmlState) -> None:
    address = "00000000:02:00.0"
    driver.change(0, nvlinks=[address, None, address, None])
    driver.change(1, nvlinks=["00000000:01:00.0", None, "00000000:01:00.0", None])
    assert links()[0, 1].nvlink == pytest.approx(2 * 14.062)


@on("rtx3090-pcie")
def test_levels_of_pcie_are_told_apart(driver: NvmlState) -> None:
    found = links()
    assert (found[0, 1].way, found[0, 2].way, found[1, 2].way) == ("switch", "host bridge", "host bridge")
    assert not any(link.peer or link.nvlink for link in found.values())


def test_what_a_gpu_does_not_tell_is_not_needed(driver: NvmlState) -> None:
    bare = {"name": "NVIDIA New", "total_mib": 1024, "capability": [12, 0]}
    driver.change(common=bare, ancestor=None, p2p=None)
    reading = read_gpus()
    assert reading.faults == ()
    assert reading.gpus[0].health == GpuHealth()
    assert (reading.gpus[0].bandwidth, reading.gpus[0].pcie_width) == (0.0, 0)
    assert {link.way for link in reading.links} == {"unknown"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"fails": "GPU_IS_LOST"}, "fallen off the bus"),
        ({"fails": "RESET_REQUIRED"}, "needs a reset"),
        ({"fails": "UNKNOWN"}, "cannot be described"),
        ({"lost_at": "uncorrectable"}, "fallen off the bus"),
        ({"lost_at": "name"}, "fallen off the bus"),
    ],
)
def test_a_gpu_that_is_lost_keeps_no_other_from_being_described(
    driver: NvmlState, fields: dict[str, str], words: str
) -> None:
    driver.change(3, **fields)
    reading = read_gpus()
    assert [one.index for one in reading.gpus] == [0, 1, 2, 4, 5, 6, 7]
    assert [fault.index for fault in left_out(reading)] == [3]
    assert words in reading.faults[0].what
    assert len(reading.links) == 21
    assert all(3 not in (link.first, link.second) for link in reading.links)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"uncorrectable": 1}, "an error in its memory that could not be corrected"),
        ({"uncorrectable": 7}, "7 errors"),
        ({"retirement_pending": 1}, "only a reset"),
        ({"remapped_rows": [3, 1, 0, 1]}, "no spare one"),
    ],
)
def test_a_gpu_whose_memory_is_broken_is_left_out_of_the_machine_and_the_plan(
    driver: NvmlState, fields: dict[str, Any], words: str
) -> None:
    driver.change(5, **fields)
    machine = read_machine()
    assert [one.index for one in machine.gpus] == [0, 1, 2, 3, 4, 6, 7]
    assert words in machine.left_out[0].what
    plan = decide(EngineSettings(files=FILES), LLAMA_70B, machine)
    assert plan.tensor_parallel == 7
    assert any(words in reason for reason in plan.reasons)
    assert not any(machine.left_out[0].uuid == uuid for uuid in plan.visible_gpus)


def test_after_a_restart_the_machine_is_read_anew(driver: NvmlState) -> None:
    def plan():
        return decide(EngineSettings(files=FILES), LLAMA_70B, read_machine())

    assert plan().tensor_parallel == 8
    driver.change(0, fails="GPU_IS_LOST")
    without = plan()
    assert without.tensor_parallel == 7
    assert without.ranks[0].device == "cuda:0"  # the first of those that are left
    driver.remove(0)  # a driver that was loaded again does not even count it
    assert plan().tensor_parallel == 7


def test_heat_and_corrected_errors_are_warnings_and_leave_nothing_out(driver: NvmlState) -> None:
    driver.change(
        2, throttle_reasons=THERMAL | IDLE | POWER_CAP, temperature=93, correctable=12, remapped_rows=[1, 0, 1, 0]
    )
    reading = read_gpus()
    assert left_out(reading) == ()
    health = reading.gpus[2].health
    assert (health.throttled, health.correctable, health.remap_pending) == (("it is too hot",), 12, True)
    warnings = warnings_of(reading.gpus[2])
    assert set(warnings) == {"throttled", "correctable", "remap"}
    assert "93 °C: it is too hot" in warnings["throttled"]
    assert "12 errors" in warnings["correctable"]
    assert warnings_of(reading.gpus[1]) == {}


def test_a_driver_that_hangs_or_fails_is_a_problem(driver: NvmlState) -> None:
    driver.change(hangs=True)
    begin = time.monotonic()
    assert "did not answer" in read_gpus(1.0, program("backend.hardware.ask_driver")).problem
    assert time.monotonic() - begin < 20
    driver.change(hangs=False, init="LIB_RM_VERSION_MISMATCH")
    assert "does not answer" in read_gpus().problem


def test_visible_devices_may_name_a_gpu_that_is_lost(driver: NvmlState, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.change(1, fails="GPU_IS_LOST")
    driver.change(2, uncorrectable=1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,1,2,3")
    machine = read_machine()
    assert [one.index for one in machine.gpus] == [4, 3]
    assert [fault.index for fault in machine.left_out] == [1, 2]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,3")
    assert read_machine().left_out == ()


def test_the_node_near_a_gpu_is_the_kernels(driver: NvmlState, tmp_path: Path) -> None:
    for address, node in (("0000:1b:00.0", "0"), ("0000:9d:00.0", "1"), ("0000:c3:00.0", "-1")):
        folder = tmp_path / "sys/bus/pci/devices" / address
        folder.mkdir(parents=True)
        (folder / "numa_node").write_text(f"{node}\n")
    nodes = [one.numa_node for one in read_machine(tmp_path).gpus]
    assert nodes == [0, None, None, None, 1, None, None, None]
    plan = decide(EngineSettings(files=FILES), LLAMA_70B, read_machine(tmp_path))
    assert [rank.numa_node for rank in plan.ranks] == nodes


def test_health_without_faults_is_none() -> None:
    assert fault_of(gpu()) is None
    healthy = Gpu(0, "u", "n", 1, 1, (9, 0), health=GpuHealth(correctable=1, throttled=("it is too hot",)))
    assert fault_of(healthy) is None
    assert "an error" in warnings_of(healthy)["correctable"]
