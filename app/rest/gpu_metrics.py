"""Metrics of the GPUs, from the newest look at them. Exposing them is `metrics`'."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from backend.hardware.gpu import Gpu, GpuReading
from backend.hardware.health import ill

_GAUGES: tuple[tuple[str, str, Callable[[Gpu], float | None]], ...] = (
    ("shardwise:gpu_throttled", "1 while heat or power slows a GPU down", lambda g: float(bool(g.health.throttled))),
    ("shardwise:gpu_temperature_celsius", "Temperature of a GPU", lambda g: g.health.temperature),
    ("shardwise:gpu_memory_used_bytes", "Memory of a GPU that is taken, by whomever", lambda g: g.total - g.free),
    ("shardwise:gpu_memory_total_bytes", "Memory of a GPU", lambda g: g.total),
)
_COUNTERS: tuple[tuple[str, str, Callable[[Gpu], float]], ...] = (
    ("shardwise:gpu_ecc_correctable", "Memory errors corrected since its driver came", lambda g: g.health.correctable),
    (
        "shardwise:gpu_ecc_uncorrectable",
        "Memory errors not corrected since its driver came",
        lambda g: g.health.uncorrectable,
    ),
)


def gpu_metrics(reading: GpuReading | None) -> Iterator[Metric]:
    """None of them where there is no GPU to tell of."""
    if reading is None or not (reading.gpus or reading.faults):
        return
    for name, text, read in _GAUGES:
        gauge = GaugeMetricFamily(name, text, labels=["gpu"])
        for gpu in reading.gpus:
            if (value := read(gpu)) is not None:
                gauge.add_metric([str(gpu.index)], float(value))
        yield gauge
    for name, text, read_count in _COUNTERS:
        counter = CounterMetricFamily(name, text, labels=["gpu"])
        for gpu in reading.gpus:
            counter.add_metric([str(gpu.index)], float(read_count(gpu)))
        yield counter
    failed = GaugeMetricFamily("shardwise:gpu_failed", "1 for a GPU that must not compute", labels=["gpu"])
    faulty = {fault.index for fault in ill(reading)}
    for index in sorted(faulty | {gpu.index for gpu in reading.gpus}):
        failed.add_metric([str(index)], float(index in faulty))
    yield failed
