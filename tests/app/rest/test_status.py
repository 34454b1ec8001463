"""`/health`, `/version`, `/metrics`, and what must never be in them or in the log."""

from __future__ import annotations

import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families


@pytest.mark.parametrize("state", ["starting", "ready", "restarting", "draining", "failed"])
async def test_health_tells_the_truth(open_endpoint, state: str):
    async with open_endpoint(state=state, error="why" if state == "failed" else "") as endpoint:
        answer = await endpoint.http.get("/health")
        assert answer.status_code == (200 if state == "ready" else 503)
        body = answer.json()
        assert body["status"] == state
        engine = body["engines"][0]
        assert (engine["model"], engine["state"], engine["pid"]) == ("fake", state, 1234)
        rank = {"rank": 0, "pid": 4321, "device": "cpu", "state": state, "weights_bytes": 1000, "stage": 0, "peer": ""}
        assert engine["ranks"] == [rank]
        assert engine["stages"] == [{"stage": "load", "seconds": 0.5, "done": 10, "total": 10, "finished": True}]
        assert engine["error"] == ("why" if state == "failed" else "")


async def test_process_ids_are_for_callers_on_this_machine(endpoint):
    import httpx

    transport = httpx.ASGITransport(endpoint.app, client=("192.168.0.7", 5))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        assert "pid" not in (await http.get("/health")).text


async def test_models_advertise_their_context(open_endpoint):
    async with open_endpoint(max_context=None) as endpoint:
        card = (await endpoint.http.get("/v1/models")).json()["data"][0]
        assert card["max_model_len"] is None
        endpoint.engine.max_context = 777
        card = (await endpoint.http.get("/v1/models/fake")).json()
        assert (card["max_model_len"], card["context_length"]) == (777, 777)
        assert card["meta"]["n_ctx_train"] >= 777
        assert (await endpoint.http.get("/v1/models/other")).status_code == 404


async def test_metrics_have_vllm_s_names_and_count(endpoint):
    await endpoint.chat(ignore_eos=True)
    await endpoint.chat(max_tokens=9, ignore_eos=True, stream=True)
    await endpoint.chat(stop="You")
    answer = await endpoint.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    model = ("model_name", "fake")
    assert samples["vllm:request_success_total", ("finished_reason", "length"), model] == 2
    assert samples["vllm:request_success_total", ("finished_reason", "stop"), model] == 1
    assert samples["vllm:time_to_first_token_seconds_count", model] == 3
    assert samples["vllm:time_to_first_token_seconds_bucket", ("le", "+Inf"), model] == 3
    between = endpoint.engine.generated - 3
    assert samples["vllm:inter_token_latency_seconds_count", model] == between
    assert samples["vllm:e2e_request_latency_seconds_count", model] == 3
    assert samples["vllm:e2e_request_latency_seconds_sum", model] > 0
    assert samples["shardwise:restarts_total", model] == 2
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        assert samples[f"vllm:{name}", model] == 0
    for name in ("prompt_tokens_total", "generation_tokens_total", "num_preemptions_total"):
        assert (f"vllm:{name}", model) in samples


async def test_prompts_and_answers_are_in_no_log_and_no_metric(open_endpoint, capfd):
    canary = "xylophone-canary-7391"

    def broken(request, index):
        raise RuntimeError(f"a bug that quotes {canary}")

    with structlog.testing.capture_logs() as logs:
        async with open_endpoint() as endpoint:
            await endpoint.chat(canary, ignore_eos=True)
            await endpoint.chat(canary, stop=3)
            endpoint.engine.choose = broken
            for stream in (False, True):
                answer = await endpoint.chat(canary, stream=stream)
                assert answer.status_code == 500
                assert canary not in answer.text
            text = (await endpoint.http.get("/metrics")).text
    assert any(entry["event"] == "request failed" for entry in logs)
    output = capfd.readouterr()
    for place in (text, repr(logs), output.out, output.err):
        assert canary not in place
