"""What doctor says of GPUs together."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from msgspec.structs import replace

from app.background import ServerRecord
from app.doctor.finding import Finding
from app.doctor.gpu_findings import gpu_findings
from app.doctor.hardware_findings import hardware_findings
from app.doctor.own_processes import own_processes
from backend.hardware.gpu import GpuFault, GpuHealth
from backend.hardware.machine import Machine
from backend.hardware.peer import PeerPath
from tests.fakes.machines import cpu_machine, dgx_h100, gpu_machine, paired_a100, pcie_3090
from tests.fakes.topology import machine_of


def of(machine: Machine, area: str) -> list[Finding]:
    return [finding for finding in gpu_findings(machine) if finding.area == area]


def peer(machine: Machine, first: int, second: int, direct: bool = True, problem: str = "") -> PeerPath:
    speed = 0.0 if problem else 40.0 + second
    return PeerPath(machine.gpus[first].uuid, machine.gpus[second].uuid, direct, speed, 9.0, problem)


def test_links_are_named_with_their_pairs() -> None:
    assert of(dgx_h100(), "links")[0].what == "NVLink through a switch (450 GB/s each way) joins all GPUs."
    what = of(paired_a100(), "links")[0].what
    assert "NVLink (300 GB/s each way) joins 0-1, 2-3" in what
    assert "PCIe (32 GB/s each way) joins 0-2, 0-3, 1-2, 1-3" in what
    assert "through main memory" in of(pcie_3090(2), "links")[0].what


def test_one_gpu_or_none_has_no_links() -> None:
    assert gpu_findings(cpu_machine()) == []
    assert {finding.area for finding in gpu_findings(gpu_machine())} == {"driver"}


def test_what_copies_did_is_told() -> None:
    machine = dgx_h100(3)
    assert of(machine, "peers")[0].status == "note"
    good = replace(machine, peers=(peer(machine, 0, 1), peer(machine, 0, 2), peer(machine, 1, 2)))
    (finding,) = of(good, "peers")
    assert finding.status == "ok"
    assert "3 pairs" in finding.what
    assert "41 GB/s or more, 9 us or less" in finding.what


def test_a_pair_that_fails_is_a_warning_with_a_fix() -> None:
    machine = dgx_h100(3)
    mixed = replace(
        machine,
        peers=(peer(machine, 0, 1, problem="a copy did not end within 20 s"), peer(machine, 0, 2, direct=False)),
    )
    broken, staged = of(mixed, "peers")
    assert broken.status == "warning"
    assert "GPUs 0 and 1 do not write to each other: a copy did not end within 20 s." in broken.what
    assert "IOMMU" in broken.fix
    assert (staged.status, "One pair of GPUs copied through main memory" in staged.what) == ("note", True)


def test_gpus_that_are_left_out_or_hot_are_warnings() -> None:
    machine = dgx_h100(2)
    hot = replace(machine.gpus[1], health=GpuHealth(throttled=("it is too hot",), correctable=3, remap_pending=True))
    ill = replace(machine, gpus=(machine.gpus[0], hot), left_out=(GpuFault(7, "", "GPU 7 has fallen off the bus."),))
    found = [finding for finding in hardware_findings(ill) if finding.status == "warning"]
    assert [finding.area for finding in found] == ["gpu"] * 4
    assert found[0].what == "GPU 7 has fallen off the bus. It is left out."
    assert all(finding.fix for finding in found)


def test_the_driver_slots_and_processors_are_told() -> None:
    machine = machine_of("dgx-h100")
    assert of(machine, "driver")[0].what == ("NVIDIA's driver 580.65.06, which serves programs for CUDA up to 13.0.")
    assert "GPUs 0, 1, 2, 3 near node 0; 4, 5, 6, 7 near node 1." in of(machine, "numa")[0].what
    assert of(machine, "pcie") == []
    narrow = of(machine_of("rtx3090-bridge"), "pcie")
    assert [finding.status for finding in narrow] == ["note", "note"]
    assert "16 lanes in a slot that gives it 8" in narrow[0].what
    assert of(machine_of("rtx3090-pcie"), "numa") == []


def test_a_gpu_that_mig_divides_is_explained_with_the_fix() -> None:
    (finding,) = [finding for finding in of(machine_of("a100-mig"), "gpu") if finding.status == "warning"]
    assert "divided by MIG" in finding.what
    assert finding.what.endswith("It is left out.")
    assert "CUDA_VISIBLE_DEVICES=MIG-" in finding.fix


@pytest.mark.parametrize(
    ("topology", "status", "words"),
    [
        ("rtx3090-shared", "warning", "take turns (time-slicing)"),
        ("t4-mps", "warning", "Multi-Process Service"),
        ("a10g-pod", "warning", "other pods"),
        ("rtx4090-held", "warning", "llama-server (48211, 21.4 GiB)"),
    ],
)
def test_who_else_uses_a_gpu_is_told_with_a_fix(topology: str, status: str, words: str) -> None:
    found = [finding for finding in hardware_findings(machine_of(topology)) if finding.area == "sharing"]
    assert any(finding.status == status and words in finding.what and finding.fix for finding in found)


def test_our_own_server_is_no_stranger() -> None:
    machine = machine_of("rtx4090-held")
    (finding,) = [finding for finding in hardware_findings(machine, own={48211}) if finding.area == "sharing"]
    assert finding.status == "note"
    assert "shardwise runs on it, llama-server (48211, 21.4 GiB)" in finding.what
    assert finding.fix == "To free it: shardwise stop"
    shared = hardware_findings(machine_of("rtx3090-shared"), own={5120})
    others = [finding.what for finding in shared if finding.area == "sharing" and finding.status == "warning"]
    assert len(others) == 1
    assert others[0].startswith("python3 (7331, 2.35 GiB) computes on GPU 0")


def test_the_processes_of_a_server_are_found_by_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.doctor.own_processes.running_servers", lambda: (ServerRecord(os.getpid(), "", ""),))
    child = subprocess.Popen((sys.executable, "-c", "input()"), stdin=subprocess.PIPE)
    try:
        assert {os.getpid(), child.pid} <= own_processes()
    finally:
        child.kill()
        child.communicate()
    gone = ServerRecord(child.pid, "", "")
    monkeypatch.setattr("app.doctor.own_processes.running_servers", lambda: (gone,))
    assert own_processes() == frozenset()


def test_a_gpu_that_is_ours_alone_has_no_finding_of_sharing() -> None:
    for topology in ("dgx-h100", "one-rtx4090", "none"):
        assert not [finding for finding in hardware_findings(machine_of(topology)) if finding.area == "sharing"]
