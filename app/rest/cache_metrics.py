"""Metrics of the KV cache over its tiers: what each is called, and how it is read. Exposing them is `metrics`'.

vLLM's names where vLLM has one: `prefix_cache` is the device's pool, `external_prefix_cache` what lies below it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from kvcache.statistics import CacheStatistics

Read = Callable[[CacheStatistics], float]


@dataclass(frozen=True, slots=True)
class CacheMetric:
    """One family; `label` names what its samples differ in, and `reads` has one entry a value of it."""

    name: str
    text: str
    label: str | None
    reads: tuple[tuple[str, Read], ...]


def _one(name: str, text: str, read: Read) -> CacheMetric:
    return CacheMetric(name, text, None, (("", read),))


def _device_hits(cache: CacheStatistics) -> int:
    return cache.hit_tokens - cache.host_hit_tokens - cache.disk_hit_tokens


GAUGES = (
    _one(
        "vllm:kv_cache_usage_perc",
        "Share of the KV pages that sequences hold, 1 is full",
        lambda c: c.pages_used / c.pages_total if c.pages_total else 0.0,
    ),
    CacheMetric(
        "shardwise:kv_pages",
        "Pages of the device's pool by state; shared ones are part of the used",
        "state",
        (
            ("free", lambda c: c.pages_free),
            ("cached", lambda c: c.pages_cached),
            ("used", lambda c: c.pages_used),
            ("shared", lambda c: c.pages_shared),
        ),
    ),
    CacheMetric(
        "shardwise:kv_bytes_used",
        "Bytes that hold something of use, by tier",
        "tier",
        (
            ("device", lambda c: (c.pages_used + c.pages_cached) * c.page_bytes),
            ("host", lambda c: c.host_pages_used * c.page_bytes),
            ("disk", lambda c: c.disk_bytes_used),
        ),
    ),
    CacheMetric(
        "shardwise:kv_bytes_capacity",
        "Bytes that a tier has room for",
        "tier",
        (
            ("device", lambda c: c.pages_total * c.page_bytes),
            ("host", lambda c: c.host_pages_total * c.page_bytes),
            ("disk", lambda c: c.disk_bytes_total),
        ),
    ),
    _one("shardwise:kv_disk_pages", "Pages on disk", lambda c: c.disk_pages),
    CacheMetric(
        "shardwise:kv_transfer_bytes_per_second",
        "Bytes per second while copying, 0 where not known",
        "kind",
        (
            ("offload", lambda c: c.offload_rate),
            ("fetch_host", lambda c: c.host_fetch_rate),
            ("store", lambda c: c.store_rate),
            ("fetch_disk", lambda c: c.disk_fetch_rate),
        ),
    ),
    _one("shardwise:prefill_tokens_per_second", "Prompt tokens computed per second", lambda c: c.compute_rate),
)
COUNTERS = (
    _one("vllm:prefix_cache_queries", "Prompt tokens looked up in the device's pages", lambda c: c.lookup_tokens),
    _one("vllm:prefix_cache_hits", "Those of them found there", _device_hits),
    _one(
        "vllm:external_prefix_cache_queries",
        "Prompt tokens looked up on host and disk",
        lambda c: c.lookup_tokens - _device_hits(c),
    ),
    _one(
        "vllm:external_prefix_cache_hits",
        "Those of them fetched from there",
        lambda c: c.host_hit_tokens + c.disk_hit_tokens,
    ),
    _one("vllm:prompt_tokens_cached", "Prompt tokens that no step had to compute", lambda c: c.hit_tokens),
    CacheMetric(
        "shardwise:kv_hit_tokens",
        "Prompt tokens served from cached pages, by tier",
        "tier",
        (
            ("device", _device_hits),
            ("host", lambda c: c.host_hit_tokens),
            ("disk", lambda c: c.disk_hit_tokens),
        ),
    ),
    CacheMetric(
        "shardwise:kv_evictions",
        "Pages whose place was given to another, by tier",
        "tier",
        (
            ("device", lambda c: c.evictions),
            ("host", lambda c: c.host_evictions),
            ("disk", lambda c: c.disk_evictions),
        ),
    ),
    CacheMetric(
        "shardwise:kv_transfers",
        "Pages copied between tiers",
        "kind",
        (
            ("offload", lambda c: c.offloaded_pages),
            ("fetch_host", lambda c: c.host_fetched_pages),
            ("store", lambda c: c.stored_pages),
            ("fetch_disk", lambda c: c.disk_fetched_pages),
        ),
    ),
    _one(
        "shardwise:kv_declined_fetches",
        "Hits on lower tiers not taken: computing was cheaper",
        lambda c: c.declined_fetches,
    ),
    _one("shardwise:kv_failed_transfers", "Transfers that ended without success", lambda c: c.failed_transfers),
    _one("shardwise:kv_rejected_records", "Records on disk that were broken or not ours", lambda c: c.rejected_records),
)


def cache_metrics(caches: Mapping[str, CacheStatistics]) -> Iterable[Metric]:
    """All families, with a sample for each model."""
    for kind, metrics in ((GaugeMetricFamily, GAUGES), (CounterMetricFamily, COUNTERS)):
        for metric in metrics:
            labels = ["model_name", *([metric.label] if metric.label else [])]
            family = kind(metric.name, metric.text, labels=labels)
            for model, cache in caches.items():
                for value, read in metric.reads:
                    family.add_metric([model, *([value] if metric.label else [])], float(read(cache)))
            yield family
