"""Metrics of the endpoint and its engines for Prometheus: vLLM's names where vLLM has one, `shardwise:` for ours.

Counting happens on the path of every token, so it is plain additions here, turned into samples when somebody looks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from time import perf_counter

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from app.rest.cache_metrics import cache_metrics
from app.rest.gpu_metrics import gpu_metrics
from backend.engine_client import EngineClient
from backend.events import EngineStatistics
from backend.hardware.gpu import GpuReading

_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0)
_FIRST += (80.0, 160.0, 640.0, 2560.0)
_BETWEEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0)
_BETWEEN += (80.0,)
_WHOLE = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0)
_WHOLE += (960.0, 1920.0, 7680.0)
_REASONS = ("stop", "length", "abort", "error")


class Buckets:
    """A histogram's counts by upper bound, in seconds."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def samples(self) -> tuple[list[tuple[str, float]], float]:
        """Cumulative counts by bound as Prometheus writes them, and the sum."""
        names = [*(str(bound) for bound in self._bounds), "+Inf"]
        return [(name, float(count)) for name, count in zip(names, accumulate(self._counts), strict=True)], self._sum


class ModelMetrics:
    """What the endpoint itself counts for one model."""

    def __init__(self) -> None:
        self.first = Buckets(_FIRST)
        self.between = Buckets(_BETWEEN)
        self.whole = Buckets(_WHOLE)
        self.finished: dict[str, int] = dict.fromkeys(_REASONS, 0)

    def begin(self) -> AnswerClock:
        return AnswerClock(self)


class AnswerClock:
    """The times of one answer, from its submission on."""

    def __init__(self, metrics: ModelMetrics) -> None:
        self._metrics = metrics
        self._began = perf_counter()
        self._last: float | None = None

    def token(self, now: float) -> None:
        if self._last is None:
            self._metrics.first.observe(now - self._began)
        else:
            self._metrics.between.observe(now - self._last)
        self._last = now

    def end(self, reason: str) -> None:
        self._metrics.whole.observe(perf_counter() - self._began)
        self._metrics.finished[reason] += 1


# Name, help, and how it is read; counters get Prometheus' `_total`.
_GAUGES: tuple[tuple[str, str, Callable[[EngineStatistics], float]], ...] = (
    ("vllm:num_requests_running", "Sequences in the running batch", lambda s: s.running),
    ("vllm:num_requests_waiting", "Sequences waiting for a place or for pages", lambda s: s.waiting),
)
_COUNTERS: tuple[tuple[str, str, Callable[[EngineStatistics], float]], ...] = (
    ("vllm:prompt_tokens", "Prompt tokens computed", lambda s: s.prompt_tokens),
    ("vllm:generation_tokens", "Tokens generated", lambda s: s.generation_tokens),
    ("vllm:num_preemptions", "Sequences put back to waiting for lack of pages", lambda s: s.preemptions),
    ("shardwise:steps", "Steps of the engine", lambda s: s.steps),
    ("shardwise:step_seconds", "Time in steps", lambda s: s.step_seconds),
    ("shardwise:scheduling_seconds", "Time in scheduling, part of the steps", lambda s: s.scheduling_seconds),
    ("shardwise:nan_requests", "Requests ended because their logits were not numbers", lambda s: s.nan_requests),
)


class RestMetrics(Collector):
    """All models' metrics, in a registry of their own."""

    def __init__(
        self, engines: Mapping[str, EngineClient], gpus: Callable[[], GpuReading | None] = lambda: None
    ) -> None:
        """gpus: tells how they are now, or None where nobody knows."""
        self._engines, self._gpus = dict(engines), gpus
        self._models = {name: ModelMetrics() for name in engines}
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def of(self, model: str) -> ModelMetrics:
        return self._models[model]

    def text(self) -> bytes:
        """The exposition of `/metrics`."""
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        statistics = {name: engine.statistics() for name, engine in self._engines.items()}
        for name, text, read in _GAUGES:
            gauge = GaugeMetricFamily(name, text, labels=["model_name"])
            for model, snapshot in statistics.items():
                gauge.add_metric([model], float(read(snapshot)))
            yield gauge
        for name, text, read in _COUNTERS:
            counter = CounterMetricFamily(name, text, labels=["model_name"])
            for model, snapshot in statistics.items():
                counter.add_metric([model], float(read(snapshot)))
            yield counter
        yield from cache_metrics({name: snapshot.cache for name, snapshot in statistics.items()})
        yield from self._own()
        yield from gpu_metrics(self._gpus())

    def _own(self) -> Iterable[Metric]:
        restarts = CounterMetricFamily("shardwise:restarts", "Restarts of the engine", labels=["model_name"])
        for model, engine in self._engines.items():
            restarts.add_metric([model], float(engine.status().restarts))
        yield restarts
        finished = CounterMetricFamily(
            "vllm:request_success", "Answers ended, by reason", labels=["model_name", "finished_reason"]
        )
        for model, metrics in self._models.items():
            for reason, count in metrics.finished.items():
                finished.add_metric([model, reason], float(count))
        yield finished
        yield self._histogram("vllm:time_to_first_token_seconds", "From submission to first token", "first")
        yield self._histogram("vllm:inter_token_latency_seconds", "From token to token", "between")
        yield self._histogram("vllm:e2e_request_latency_seconds", "From submission to the end", "whole")

    def _histogram(self, name: str, text: str, field: str) -> Metric:
        family = HistogramMetricFamily(name, text, labels=["model_name"])
        for model, metrics in self._models.items():
            buckets, total = getattr(metrics, field).samples()
            family.add_metric([model], buckets, total)
        return family
