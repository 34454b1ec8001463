"""What doctor says of measured rates."""

from __future__ import annotations

from msgspec.structs import replace

from app.doctor.finding import Finding
from app.doctor.rate_findings import rate_findings
from backend.hardware.machine import Machine
from backend.hardware.rates import CopyRate, HostRates
from tests.fakes.machines import cpu_machine
from tests.fakes.topology import machine_of

RATES = HostRates(memory=84.6, disk=3.1, disk_direct=True, disk_folder="/models")


def of(machine: Machine, rates: HostRates) -> list[Finding]:
    return list(rate_findings(replace(machine, rates=rates)))


def test_memory_and_disk_are_told() -> None:
    memory, disk = of(cpu_machine(cores=16), RATES)
    assert (memory.status, disk.status) == ("ok", "ok")
    assert "84.6 GB/s" in memory.what
    assert "16 cores" in memory.what
    assert "busy" in of(cpu_machine(), replace(RATES, busy=True))[0].what
    assert "busy" not in memory.what
    assert disk.what == "The disk of /models is read at 3.1 GB/s."


def test_nothing_measured_is_a_note() -> None:
    assert [finding.status for finding in of(cpu_machine(), HostRates())] == ["note"]
    assert of(cpu_machine(), replace(RATES, disk=0.0))[1].status == "note"


def test_a_slow_disk_is_a_warning_with_its_cost() -> None:
    slow = of(cpu_machine(), replace(RATES, disk=0.1))[1]
    assert slow.status == "warning"
    assert "2.7 minutes" in slow.what
    assert "HF_HOME" in slow.fix
    assert "may be slower" in of(cpu_machine(), replace(RATES, disk_direct=False))[1].what


def test_copies_are_judged_by_the_slot() -> None:
    machine = machine_of("rtx3090-bridge")  # slots of 8 lanes: 15.8 GB/s as built
    one, other = (gpu.uuid for gpu in machine.gpus)
    good, bad = of(machine, replace(RATES, copies=(CopyRate(one, 12.4, 13.0), CopyRate(other, 12.5, 3.0))))[2:]
    assert good.status == "ok"
    assert "12.4 GB/s, read from at 13" in good.what
    assert bad.status == "warning"
    assert "PCIe 4.0 x8) should reach 12.6" in bad.what
    assert [finding.status for finding in of(machine, RATES)[2:]] == ["note", "note"]
