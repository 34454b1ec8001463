from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from backend.hardware.cgroup import CgroupLimits, read_cgroup
from backend.hardware.cpu import Cpu, read_cpu
from backend.hardware.gpu import GpuReading
from backend.hardware.machine import Machine, read_machine, visible
from backend.hardware.memory import Memory, read_memory
from backend.hardware.nvml import read_gpus
from tests.fakes.machines import gpu

GIB = 1 << 30


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_this_machine_is_described() -> None:
    machine = read_machine()
    assert isinstance(machine, Machine)
    assert machine.cpu.name
    assert 1 <= machine.cpu.cores <= machine.cpu.threads == len(os.sched_getaffinity(0))
    assert 0 < machine.memory.available <= machine.memory.total <= psutil.virtual_memory().total


def test_cgroup_v2_takes_the_tightest_level(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/slice/unit\n",
            "sys/fs/cgroup/slice/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/slice/memory.max": "max\n",
            "sys/fs/cgroup/slice/unit/cpu.max": "max 100000\n",
            "sys/fs/cgroup/slice/unit/memory.max": f"{4 * GIB}\n",
            "sys/fs/cgroup/slice/unit/memory.current": f"{3 * GIB}\n",
            "sys/fs/cgroup/slice/unit/memory.stat": f"anon 5\ninactive_file {GIB}\n",
        },
    )
    assert read_cgroup(root) == CgroupLimits(cpus=1.5, memory=4 * GIB, memory_used=2 * GIB)


def test_cgroup_v1_inside_a_container_whose_path_is_the_hosts(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "250000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
        },
    )
    assert read_cgroup(root) == CgroupLimits(cpus=2.5, memory=2 * GIB, memory_used=GIB)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {
            "proc/self/cgroup": "4:memory:/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        },
        {"proc/self/cgroup": "5:cpu:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1"},
        {"proc/self/cgroup": "nonsense\n0::/../..\n"},
    ],
)
def test_no_limit_is_none(tmp_path: Path, files: dict[str, str]) -> None:
    assert read_cgroup(write(tmp_path, files)) == CgroupLimits()


def test_memory_is_what_the_cgroup_leaves() -> None:
    free = read_memory(CgroupLimits())
    assert not free.limited
    assert read_memory(CgroupLimits(memory=free.total * 2)).total == free.total
    limited = read_memory(CgroupLimits(memory=64 << 20, memory_used=48 << 20))
    assert limited == Memory(64 << 20, 16 << 20, limited=True)


def test_cores_are_counted_once_per_hyperthread_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    files = {"proc/cpuinfo": "model name : Some CPU\nflags : avx2 avx512_bf16 sse\n\nmodel name : Other\n"}
    for number in range(4):
        files[f"sys/devices/system/cpu/cpu{number}/topology/physical_package_id"] = "0\n"
        files[f"sys/devices/system/cpu/cpu{number}/topology/core_id"] = f"{number // 2}\n"
    cpu = read_cpu(root=write(tmp_path, files))
    assert cpu == Cpu("Some CPU", cores=2, threads=4, features=("avx512_bf16", "avx2"))


def test_a_quota_limits_the_cores_but_leaves_one() -> None:
    assert Cpu("", 8, 16).usable_cores == 8
    assert Cpu("", 8, 16, quota=2.5).usable_cores == 2
    assert Cpu("", 8, 16, quota=0.5).usable_cores == 1


@pytest.mark.parametrize(
    ("features", "native"),
    [
        (("avx512f", "avx2"), False),
        (("avx512_bf16",), True),
        (("amx_bf16",), True),
        (("bf16", "asimd"), True),
    ],
)
def test_which_cpus_multiply_bfloat16(features: tuple[str, ...], native: bool) -> None:
    assert Cpu("", 1, 1, features=features).native_bfloat16 is native


def test_a_hung_driver_is_a_problem_and_not_a_hang() -> None:
    begin = time.monotonic()
    reading = read_gpus(0.3, (sys.executable, "-c", "import time; time.sleep(60)"))
    assert time.monotonic() - begin < 5
    assert reading.gpus == ()
    assert "did not answer" in reading.problem


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("raise SystemExit('boom')", "boom"),
        ("import os; os.abort()", "exit status -6"),
        ("print('{}x')", "status 0"),
    ],
)
def test_a_broken_driver_is_a_problem(program: str, words: str) -> None:
    reading = read_gpus(20, (sys.executable, "-c", program))
    assert reading.gpus == ()
    assert words in reading.problem


def test_an_answer_of_the_driver_is_read() -> None:
    import msgspec

    answer = GpuReading((gpu(0), gpu(1, capability=(7, 5))))
    program = f"import sys; sys.stdout.buffer.write({msgspec.json.encode(answer)!r})"
    assert read_gpus(20, (sys.executable, "-c", program)) == answer


def test_visible_devices_choose_and_order() -> None:
    gpus = (gpu(0), gpu(1), gpu(2))
    assert visible(gpus, None) == gpus
    assert visible(gpus, "") == ()
    assert visible(gpus, "2,0") == (gpus[2], gpus[0])
    assert visible(gpus, gpus[1].uuid[:12]) == (gpus[1],)
    assert visible(gpus, "0,7,1") == (gpus[0],)
    assert visible(gpus, "-1") == ()
