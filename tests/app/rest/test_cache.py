"""`/cache` and the cache's metrics: every figure where it belongs."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from kvcache.statistics import CACHED, FREE, SHARED, USED, CacheMap, CacheStatistics

# Every figure differs, so that none can stand for another.
FULL = CacheStatistics(**{name: 100 + number for number, name in enumerate(CacheStatistics.__struct_fields__)})


async def test_the_route_gives_figures_and_the_map(open_endpoint):
    async with open_endpoint(cache=FULL, map=CacheMap(4, bytes([FREE, CACHED, USED, SHARED]))) as endpoint:
        (engine,) = (await endpoint.http.get("/cache")).json()["engines"]
        assert engine["model"] == "fake"
        assert CacheStatistics(**engine["statistics"]) == FULL
        assert engine["map"] == {"pages_per_cell": 4, "device": "0123"}
        endpoint.engine.map = None
        assert (await endpoint.http.get("/cache")).json()["engines"][0]["map"] is None
        endpoint.keys.create("someone")
        assert (await endpoint.http.get("/cache")).status_code == 401


async def test_metrics_name_each_figure_by_tier_and_kind(open_endpoint):
    async with open_endpoint(cache=FULL) as endpoint:
        text = (await endpoint.http.get("/metrics")).text
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = [value for name, value in sample.labels.items() if name != "model_name"]
            found[".".join([sample.name, *labels])] = sample.value
    device_hits = FULL.hit_tokens - FULL.host_hit_tokens - FULL.disk_hit_tokens
    assert found["vllm:prefix_cache_queries_total"] == FULL.lookup_tokens
    assert found["vllm:prefix_cache_hits_total"] == device_hits
    assert found["vllm:external_prefix_cache_hits_total"] == FULL.host_hit_tokens + FULL.disk_hit_tokens
    assert found["vllm:prompt_tokens_cached_total"] == FULL.hit_tokens
    assert found["vllm:kv_cache_usage_perc"] == FULL.pages_used / FULL.pages_total
    assert found["shardwise:kv_hit_tokens_total.disk"] == FULL.disk_hit_tokens
    for state in ("free", "cached", "used", "shared"):
        assert found[f"shardwise:kv_pages.{state}"] == getattr(FULL, f"pages_{state}")
    for tier, evicted in (("device", FULL.evictions), ("host", FULL.host_evictions), ("disk", FULL.disk_evictions)):
        assert found[f"shardwise:kv_evictions_total.{tier}"] == evicted
    assert found["shardwise:kv_bytes_used.device"] == (FULL.pages_used + FULL.pages_cached) * FULL.page_bytes
    assert found["shardwise:kv_bytes_capacity.host"] == FULL.host_pages_total * FULL.page_bytes
    assert found["shardwise:kv_bytes_used.disk"] == FULL.disk_bytes_used
    for kind, pages, rate in (
        ("offload", FULL.offloaded_pages, FULL.offload_rate),
        ("fetch_host", FULL.host_fetched_pages, FULL.host_fetch_rate),
        ("store", FULL.stored_pages, FULL.store_rate),
        ("fetch_disk", FULL.disk_fetched_pages, FULL.disk_fetch_rate),
    ):
        assert found[f"shardwise:kv_transfers_total.{kind}"] == pages
        assert found[f"shardwise:kv_transfer_bytes_per_second.{kind}"] == rate
    assert found["shardwise:kv_declined_fetches_total"] == FULL.declined_fetches
    assert found["shardwise:kv_failed_transfers_total"] == FULL.failed_transfers
    assert found["shardwise:kv_rejected_records_total"] == FULL.rejected_records
    assert found["shardwise:prefill_tokens_per_second"] == FULL.compute_rate
