"""How shared GPUs are recognized, explained and kept out of plans, over a fake driver."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backend.engine_settings import EngineSettings
from backend.errors import SettingError
from backend.hardware.gpu import Gpu, GpuHolder, GpuReading
from backend.hardware.health import barred_of, ill
from backend.hardware.machine import read_machine
from backend.hardware.mps_limit import limited_by_mps
from backend.hardware.nvml import read_gpus
from backend.hardware.sharing import Sharing, sharing_of
from backend.planner.decide import decide
from tests.backend.planner.test_decide import FILES
from tests.fakes.machines import gpu
from tests.fakes.models import STARTER
from tests.fakes.nvml_state import NvmlState
from tests.fakes.topology import TOPOLOGIES, machine_of

GIB = 1 << 30


def kinds(one: Gpu, pod: bool = False) -> dict[str, Sharing]:
    return {sharing.kind: sharing for sharing in sharing_of(one, pod)}


@pytest.fixture
def driver(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NvmlState:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("SHARDWISE_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path / "mps"))
    return NvmlState.install(request.param, tmp_path, monkeypatch)


def on(topology: str) -> Any:
    return pytest.mark.parametrize("driver", [topology], indirect=True)


@pytest.mark.parametrize("topology", [name for name in TOPOLOGIES if name not in ("none", "a100-mig")])
def test_every_topology_is_a_machine(topology: str) -> None:
    machine = machine_of(topology)
    assert machine.gpus
    assert machine.gpu_problem == ""
    assert machine.left_out == ()
    count = len(machine.gpus)
    assert len(machine.links) == count * (count - 1) // 2
    assert all(one.bandwidth > 200 and one.pcie_generation >= 3 for one in machine.gpus)


def test_no_gpu_is_a_machine_too() -> None:
    assert machine_of("none").gpus == ()


def test_gpus_that_nobody_shares_have_nothing_said_of_them() -> None:
    for topology in ("dgx-h100", "a100-pairs", "rtx3090-bridge", "rtx3090-pcie", "unequal", "one-rtx4090"):
        assert not any(sharing_of(one) for one in machine_of(topology).gpus), topology


def test_a_desktop_is_a_holder_and_no_harm() -> None:
    (one,) = machine_of("one-rtx4090").gpus
    assert [(holder.name, holder.kind) for holder in one.holders] == [("Xorg", "graphics"), ("gnome-shell", "graphics")]


def test_a_gpu_that_mig_divides_is_left_out_with_its_instances_named() -> None:
    machine = machine_of("a100-mig")
    assert [one.index for one in machine.gpus] == [0]
    (fault,) = machine.left_out
    assert ill(GpuReading(machine.gpus)) == ()
    assert "divided by MIG" in fault.what
    assert fault.what.count("2g.20gb (MIG-") == 3
    # The one with most free memory.
    assert "CUDA_VISIBLE_DEVICES=MIG-00000006" in fault.fix
    assert "-i 1 -mig 0" in fault.fix


@on("a100-mig")
def test_an_instance_that_the_environment_names_is_planned_for(
    driver: NvmlState, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuid = read_gpus().gpus[1].instances[2].uuid
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", uuid)
    machine = read_machine()
    (one,) = machine.gpus
    assert (one.uuid, one.name, one.total) == (uuid, "NVIDIA A100-SXM4-80GB MIG 2g.20gb", 19968 << 20)
    assert one.parent == read_gpus().gpus[1].uuid
    assert one.bandwidth == pytest.approx(2039 * 19968 / 81920, rel=0.01)
    assert machine.left_out == ()
    assert decide(EngineSettings(files=FILES), STARTER, machine).visible_gpus == (uuid,)
    assert kinds(one)["instance"].harm is False
    for other in ("MIG-nonsense", "GPU-00000001", "1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", other)
        assert read_machine().gpus == ()


@on("a100-mig")
def test_mig_without_instances_says_so(driver: NvmlState) -> None:
    driver.change(1, instances=[])
    (fault,) = read_machine().left_out
    assert "no instance" in fault.what
    assert "-mig 0" in fault.fix


@on("a100-mig")
def test_mig_that_waits_for_a_reset_does_not_count(driver: NvmlState) -> None:
    driver.change(1, mig=[0, 1])
    assert len(read_machine().gpus) == 2


def test_clients_of_mps_and_its_server_are_told_apart() -> None:
    (one,) = machine_of("t4-mps").gpus
    assert one.mps
    assert {holder.name: holder.kind for holder in one.holders} == {"nvidia-cuda-mps-server": "mps", "nbody": "mps"}
    found = kinds(one)
    assert set(found) == {"mps"}
    assert "nbody (144377, 107 MiB), nbody (144379, 107 MiB)" in found["mps"].what
    assert "server" not in found["mps"].what
    assert "nvidia-cuda-mps-control" in found["mps"].fix


@on("one-rtx4090")
def test_a_control_daemon_without_clients_is_seen_by_its_pipe(driver: NvmlState, tmp_path: Path) -> None:
    assert not read_machine().gpus[0].mps
    (tmp_path / "mps").mkdir()
    (tmp_path / "mps" / "control").touch()
    (one,) = read_machine().gpus
    assert one.mps
    assert kinds(one)["mps"].harm is False


def test_mps_limits_what_is_free() -> None:
    gpus = (gpu(0, mps=True), gpu(1, mps=True), gpu(2))
    limited = limited_by_mps(gpus, "0=8G,1=nonsense,2=1G,x")
    assert [one.free for one in limited] == [8_000_000_000, gpus[1].free, gpus[2].free]
    assert limited_by_mps(gpus, "") == gpus


def test_programs_that_take_turns_are_named() -> None:
    shared, alone = machine_of("rtx3090-shared").gpus
    found = kinds(shared)
    assert set(found) == {"time-slicing", "held"}
    assert "ollama (5120, 6.11 GiB), python3 (7331, 2.35 GiB) compute on GPU 0" in found["time-slicing"].what
    assert kinds(alone) == {}


def test_other_pods_show_by_memory_that_nobody_holds() -> None:
    machine = machine_of("a10g-pod")
    (one,) = machine.gpus
    assert machine.pod
    assert "time-slicing" in kinds(one, pod=True)["hidden"].what
    assert "gpu.shared" in kinds(one, pod=True)["hidden"].fix
    assert "other containers" in kinds(one)["hidden"].what
    assert kinds(one)["hidden"].what.startswith("12.8 GiB")


def test_who_holds_memory_is_named_with_how_much() -> None:
    (one,) = machine_of("rtx4090-held").gpus
    held = kinds(one)["held"]
    assert held.harm
    assert "21.4 GiB of GPU 0" in held.what
    assert "llama-server (48211, 21.4 GiB)" in held.what


def test_a_holder_that_does_not_tell_hides_nothing() -> None:
    one = gpu(free=2 * GIB, holders=(GpuHolder(1, "a", None), GpuHolder(2, "b", GIB)))
    assert one.hidden == 0
    assert gpu(free=20 * GIB, holders=(GpuHolder(2, "b", GIB),)).hidden == 3 * GIB


@on("rtx4090-held")
def test_compute_modes(driver: NvmlState) -> None:
    driver.change(0, compute_mode=3)
    (one,) = read_machine().gpus
    assert one.mode == "exclusive"
    found = kinds(one)
    assert set(found) == {"exclusive", "held"}
    assert found["exclusive"].harm
    assert "llama-server" in found["exclusive"].what
    driver.change(0, processes=[], free_mib=24000)
    assert kinds(read_machine().gpus[0])["exclusive"].harm is False
    driver.change(0, compute_mode=2)
    machine = read_machine()
    assert machine.gpus == ()
    assert "prohibited" in machine.left_out[0].what
    assert "nvidia-smi -i 0 -c DEFAULT" in machine.left_out[0].fix
    with pytest.raises(SettingError, match="prohibited"):
        decide(EngineSettings(files=FILES, device="cuda"), STARTER, machine)


@on("one-rtx4090")
def test_a_virtual_gpu_is_recognized(driver: NvmlState) -> None:
    driver.change(0, virtualization=2)
    assert "hypervisor" in kinds(read_machine().gpus[0])["virtual"].what


@on("one-rtx4090")
def test_a_process_is_named_by_the_driver_else_by_the_kernel_else_not(driver: NvmlState) -> None:
    driver.change(0, processes=[[os.getpid(), 5], [1873, 7]], graphics=[[1873, 7], [4_194_304 + 5, 1]])
    holders = {holder.pid: holder for holder in read_machine().gpus[0].holders}
    assert holders[os.getpid()].name
    assert (holders[1873].name, holders[1873].kind, holders[1873].bytes) == ("Xorg", "compute", 7 << 20)
    assert holders[4_194_304 + 5].name == ""


def test_what_older_versions_recorded_is_read() -> None:
    old = b'{"index":0,"uuid":"GPU-1","name":"n","total":9,"free":9,"capability":[8,6],"holders":['
    one = msgspec.json.decode(old + b'{"pid":1,"name":"a","bytes":2}]}', type=Gpu)
    assert (one.mode, one.mig, one.mps, one.holders[0].kind) == ("default", False, False, "compute")
    assert barred_of(one) is None
