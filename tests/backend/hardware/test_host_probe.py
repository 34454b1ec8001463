"""The probe of rates: bounded in time, remembered by machine, and silent where something fails."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from backend.hardware import probe_host
from backend.hardware.cpu import Cpu
from backend.hardware.host_probe import measure, measured
from backend.hardware.machine import read_machine
from backend.hardware.rate_store import RateStore
from backend.hardware.rates import CopyRate, HostRates
from backend.planner.links import host_bandwidth
from tests.fakes.machines import bridged_3090, cpu_machine, gpu

SAYS = "import sys; open({seen!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n'); print({answer!r})"
HOST = '{"memory": 40.0, "disk": 2.0, "disk_direct": true}'
COPIES = "[[12.0, 13.0], [11.0, 3.0]]"


@pytest.fixture(autouse=True)
def _idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))


def saying(seen: Path, answer: str) -> tuple[str, ...]:
    return (sys.executable, "-c", SAYS.format(seen=str(seen), answer=answer))


def asked(seen: Path) -> list[str]:
    return seen.read_text().splitlines() if seen.exists() else []


def test_this_machine_is_measured(tmp_path: Path) -> None:
    rates = measure(read_machine(), tmp_path)
    assert 0.1 < rates.memory < 10_000
    assert 0.001 < rates.disk < 1000
    assert rates.disk_folder == str(tmp_path)
    assert rates.copies == ()
    assert not list(tmp_path.iterdir())


def test_rates_are_measured_once_for_a_machine_and_its_library(tmp_path: Path) -> None:
    store, seen, machine = RateStore(tmp_path / "rates", "boot"), tmp_path / "seen", bridged_3090()
    host, copies = saying(seen, HOST), saying(seen, COPIES)
    found = measured(machine, store, tmp_path, host, copies)
    first, second = (one.uuid for one in machine.gpus)
    assert found.rates == HostRates(
        40.0, 2.0, True, str(tmp_path), (CopyRate(first, 12.0, 13.0), CopyRate(second, 11.0, 3.0))
    )
    assert asked(seen) == [f"{tmp_path} {machine.cpu.usable_cores}", "2"]
    assert measured(machine, store, tmp_path, ("/no/such",), ("/no/such",)) == found
    assert store.read(machine.cpu, machine.gpus) == found.rates
    measured(machine, store, tmp_path / "other", host, copies)
    assert len(asked(seen)) == 4


def test_a_busy_machine_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, seen = RateStore(tmp_path / "rates", "boot"), tmp_path / "seen"
    monkeypatch.setattr(os, "getloadavg", lambda: (99.0, 0.0, 0.0))
    first = measured(cpu_machine(), store, tmp_path, saying(seen, HOST))
    assert first.rates.busy
    assert store.read(first.cpu, ()) == first.rates
    monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 0.0, 0.0))
    assert not measured(cpu_machine(), store, tmp_path, saying(seen, HOST)).rates.busy
    measured(cpu_machine(), store, tmp_path, saying(seen, HOST))
    assert len(asked(seen)) == 2


def test_after_a_restart_they_are_measured_again_and_used_until_then(tmp_path: Path) -> None:
    seen, machine = tmp_path / "seen", cpu_machine()
    measured(machine, RateStore(tmp_path / "rates", "boot"), tmp_path, saying(seen, HOST))
    after = RateStore(tmp_path / "rates", "next boot")
    assert after.read(machine.cpu, ()) is not None
    assert after.read(machine.cpu, (), fresh=True) is None
    measured(machine, after, tmp_path, saying(seen, HOST))
    assert len(asked(seen)) == 2
    assert after.read(machine.cpu, (), fresh=True) is not None


def test_another_machine_is_another_file(tmp_path: Path) -> None:
    store, cpu = RateStore(tmp_path, "boot"), Cpu("A", 8, 16)
    store.write(cpu, (gpu(0),), HostRates(memory=1.0))
    assert store.read(cpu, (gpu(0),)) == HostRates(memory=1.0)
    assert store.read(cpu, ()) is None
    assert store.read(Cpu("A", 8, 16, quota=2.0), (gpu(0),)) is None
    assert store.read(cpu, (replace(gpu(0), driver="999"),)) is None
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(b"\x93rubbish")
    assert store.read(cpu, (gpu(0),)) is None


@pytest.mark.parametrize("program", ["raise SystemExit('boom')", "print('[')", 'print(\'{"memory": "fast"}\')'])
def test_a_probe_that_fails_is_not_remembered(tmp_path: Path, program: str) -> None:
    command = (sys.executable, "-c", program)
    found = measured(bridged_3090(), RateStore(tmp_path / "rates", "boot"), tmp_path, command, command)
    assert found.rates == HostRates(disk_folder=str(tmp_path))
    assert not (tmp_path / "rates").exists()


def test_a_disk_that_hangs_costs_bounded_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.hardware.host_probe._HOST", 0.3)
    begin = time.monotonic()
    rates = measure(cpu_machine(), tmp_path, (sys.executable, "-c", "import time; time.sleep(60)"))
    assert time.monotonic() - begin < 20
    assert rates.memory == 0.0


def test_a_model_that_is_there_is_read_instead_of_a_file_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe_host, "_write", lambda descriptor: pytest.fail("it writes"))
    monkeypatch.setattr(probe_host, "_READ_LEAST", 1 << 20)
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "small").write_bytes(b"x")
    (blobs / "large").write_bytes(os.urandom(2 << 20))
    assert probe_host.disk_rate(tmp_path)[0] > 0


def test_a_file_system_without_direct_reads_is_said_to_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_host, "_WRITTEN", 2 * probe_host._CHUNK)
    opened = os.open

    def refuses(path: str, flags: int, *more: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return opened(path, flags, *more)

    monkeypatch.setattr(os, "open", refuses)
    rate, direct = probe_host.disk_rate(tmp_path)
    assert rate > 0
    assert not direct


def test_a_folder_that_cannot_be_written_or_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_host, "_WRITTEN", probe_host._CHUNK)
    assert probe_host.disk_rate(tmp_path / "not" / "yet")[0] > 0
    assert not (tmp_path / "not").exists()

    def full(descriptor: int, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    assert probe_host.disk_rate(tmp_path) == (0.0, False)


def test_copies_to_a_device_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the processor; what they are on a GPU only a GPU tells."""
    import torch

    from backend.hardware import probe_copies

    monkeypatch.setattr(probe_copies, "_BYTES", 1 << 20)
    assert all(rate > 0 for rate in probe_copies.copy_rates(torch.device("cpu")))


def test_a_torch_that_sees_no_gpu_times_nothing(tmp_path: Path) -> None:
    rates = measure(bridged_3090(), tmp_path, saying(tmp_path / "seen", HOST))
    assert rates.memory == 40.0
    assert rates.copies == ()


def test_the_planner_takes_what_was_measured() -> None:
    one = gpu(0, pcie_generation=4, pcie_width=16)
    assert host_bandwidth(one) == pytest.approx(25.2, abs=0.1)
    assert host_bandwidth(one, HostRates()) == host_bandwidth(one)
    assert host_bandwidth(one, HostRates(copies=(CopyRate(one.uuid, 11.0, 12.0),))) == 11.0


def test_what_was_measured_is_read_with_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDWISE_CACHE_HOME", str(tmp_path))
    machine = read_machine()
    assert machine.rates == HostRates()
    RateStore(tmp_path / "rates", "boot").write(machine.cpu, machine.gpus, HostRates(memory=5.0))
    assert read_machine().rates.memory == 5.0
