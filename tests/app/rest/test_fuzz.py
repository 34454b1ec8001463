"""Inputs made from our own OpenAPI: whatever comes, the status is meant, and a golden request still passes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from app.keys import KeyStore
from app.rest.server import create_app
from tests.fakes.engine_client import FakeEngine

EXAMPLES = 40
FUZZED = ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize")
MEANT = {200, 400, 404, 405, 413, 415, 429, 503, 504}


@pytest.fixture
def fuzzing(open_endpoint) -> Iterator[Any]:
    """Sends a request and then a golden one; the application is the same for all examples of a test."""
    with asyncio.Runner() as runner:
        opened = open_endpoint(max_context=256)
        endpoint = runner.run(opened.__aenter__())
        golden = runner.run(endpoint.chat(ignore_eos=True)).json()["choices"]

        async def send(build: Any) -> None:
            answer = await build(endpoint.http)
            assert answer.status_code in MEANT, answer.text
            if answer.status_code >= 400:
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
            assert (await endpoint.chat(ignore_eos=True)).json()["choices"] == golden
            assert not endpoint.engine.running

        yield lambda build: runner.run(send(build))
        runner.run(opened.__aexit__(None, None, None))


def operations() -> dict[str, Any]:
    class NoKeys(KeyStore):
        def in_use(self) -> bool:
            return False

    from pathlib import Path

    from app.rest.served import ServedEngine

    app = create_app({"fake": ServedEngine(FakeEngine(), None, None)}, NoKeys(Path("none")))  # type: ignore[arg-type]
    schema = schemathesis.openapi.from_dict(app.openapi())
    return {path: schema[path]["POST"] for path in FUZZED}


OPERATIONS = operations()


@pytest.mark.parametrize("path", FUZZED)
@pytest.mark.parametrize("mode", [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE])
def test_generated_requests(fuzzing, path: str, mode: schemathesis.GenerationMode):
    quiet = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]

    @settings(max_examples=EXAMPLES, suppress_health_check=quiet, phases=[Phase.generate])
    @given(case=OPERATIONS[path].as_strategy(generation_mode=mode))
    def run(case: schemathesis.Case) -> None:
        body = case.body
        if isinstance(body, dict):
            # Names of models are guessed by nobody; with the right one the rest is looked at.
            body = {**body, "model": "fake"}

        async def send(http: httpx.AsyncClient) -> httpx.Response:
            try:
                return await http.post(path, json=body)
            except (TypeError, ValueError):
                return await http.post(path, content=repr(body).encode("utf-8", "replace"))

        fuzzing(send)

    run()


@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from(FUZZED),
    body=st.binary(max_size=200),
    kind=st.sampled_from(["application/json", "text/plain", "multipart/form-data; boundary=x", "\x80", ""]),
)
def test_any_bytes(fuzzing, path: str, body: bytes, kind: str):
    async def send(http: httpx.AsyncClient) -> httpx.Response:
        return await http.post(path, content=body, headers=[(b"content-type", kind.encode("latin-1"))])

    fuzzing(send)
