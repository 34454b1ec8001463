"""How fast devices are taken to be, by the table, the driver, or neither."""

from __future__ import annotations

import pytest

from backend.hardware.cpu import Cpu
from backend.hardware.gpu_table import GpuFacts, gpu_table
from backend.planner.timing.device_speed import device_speed, kind_speed, processor_speed
from tests.fakes.machines import GIB, dgx_h100, gpu


def test_the_table_knows_a_gpu_and_the_driver_its_own_memory() -> None:
    found = device_speed(dgx_h100().gpus[0])
    assert (found.memory, found.bf16, found.fp8, found.fp4, found.family) == (3352.0, 989, 1979, None, "hopper")
    assert device_speed(gpu(name="NVIDIA H100 80GB HBM3")).memory == 3350


def test_a_gpu_that_nobody_knows_gets_estimates() -> None:
    found = device_speed(gpu(name="NVIDIA Whatever", capability=(8, 0)))
    assert found.memory == 600
    assert found.bf16 > 10
    assert (found.fp8, found.family) == (None, "ampere")
    assert device_speed(gpu(name="NVIDIA Whatever", bandwidth=1200.0)).bf16 == pytest.approx(2 * found.bf16)


def test_what_a_device_does_not_multiply_is_widened() -> None:
    a100 = device_speed(gpu(name="NVIDIA A100-SXM4-80GB", capability=(8, 0)))
    assert (a100.multiplies("fp8"), a100.products("fp8")) == ("bf16", a100.bf16)
    assert (a100.multiplies("int8"), a100.products("int8")) == ("int8", 624)


@pytest.mark.parametrize("facts", gpu_table(), ids=lambda facts: facts.name)
def test_every_kind_has_a_speed(facts: GpuFacts) -> None:
    found = kind_speed(facts)
    assert found.memory > 100
    assert found.bf16 > 5


def test_a_processor_is_what_was_measured_a_core_and_no_more_than_its_socket() -> None:
    two = processor_speed(Cpu("EPYC", 2, 4, None, ("avx512_bf16", "avx512f", "avx2")))
    assert (two.memory, two.bf16, two.family) == (30.0, 0.43, "processor")
    assert processor_speed(Cpu("EPYC", 96, 192)).memory == 200.0
    assert processor_speed(Cpu("old", 2, 2)).bf16 < 0.1 * two.bf16 + 0.01
    assert processor_speed(Cpu("EPYC", 96, 192, quota=2.0)).memory == 30.0


def test_ranks_of_a_processor_share_it_and_a_measured_rate_counts_more() -> None:
    cpu = Cpu("EPYC", 8, 16, None, ("avx2",))
    whole, half = processor_speed(cpu, 90.0), processor_speed(cpu, 90.0, ranks=2)
    assert (whole.memory, half.memory, half.bf16) == (90.0, 45.0, whole.bf16 / 2)


def test_a_part_that_mig_made_has_its_part_of_everything() -> None:
    whole = device_speed(gpu(name="NVIDIA A100-SXM4-40GB", capability=(8, 0)))
    part = device_speed(gpu(name="NVIDIA A100-SXM4-40GB MIG 3g.20gb", total=int(19.69 * GIB), capability=(8, 0)))
    assert part.memory == pytest.approx(whole.memory / 2, rel=0.01)
    assert part.bf16 == pytest.approx(whole.bf16 * 3 / 7)
    assert (part.fp8, part.family) == (None, "ampere")
