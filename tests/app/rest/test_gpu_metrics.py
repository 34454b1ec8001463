"""What /metrics tells of GPUs."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from app.rest.metrics import RestMetrics
from backend.hardware.gpu import GpuFault, GpuHealth, GpuReading
from tests.fakes.machines import GIB, gpu


def samples(reading: GpuReading | None) -> dict[tuple[str, str], float]:
    text = RestMetrics({}, lambda: reading).text().decode()
    return {
        (sample.name, sample.labels["gpu"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "gpu" in sample.labels
    }


def test_each_gpu_has_its_state() -> None:
    hot = GpuHealth(throttled=("it is too hot",), correctable=4, temperature=93)
    broken = GpuHealth(uncorrectable=2)
    reading = GpuReading(
        (gpu(0, free=4 * GIB, health=hot), gpu(1, health=broken)), faults=(GpuFault(2, "", "GPU 2 is lost."),)
    )
    found = samples(reading)
    assert found["shardwise:gpu_throttled", "0"] == 1
    assert found["shardwise:gpu_throttled", "1"] == 0
    assert found["shardwise:gpu_ecc_correctable_total", "0"] == 4
    assert found["shardwise:gpu_ecc_uncorrectable_total", "1"] == 2
    assert found["shardwise:gpu_temperature_celsius", "0"] == 93
    assert ("shardwise:gpu_temperature_celsius", "1") not in found
    assert found["shardwise:gpu_memory_used_bytes", "0"] == 20 * GIB
    assert found["shardwise:gpu_memory_total_bytes", "0"] == 24 * GIB
    assert [found["shardwise:gpu_failed", str(number)] for number in range(3)] == [0, 1, 1]


def test_without_gpus_there_is_nothing_to_tell() -> None:
    assert samples(None) == samples(GpuReading()) == {}
