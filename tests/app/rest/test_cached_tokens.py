"""Cached tokens in the usage, and that API keys never share cached pages."""

from __future__ import annotations

import json

import httpx
import pytest

from app.rest.server import create_app
from backend.cache_identity import owner_tag, salt

SECRET = b"s" * 32


def cached(body: dict) -> int:
    return body["usage"]["prompt_tokens_details"]["cached_tokens"]


def last_usage(answer: httpx.Response) -> dict:
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
    return json.loads(lines[-1])


@pytest.mark.parametrize("route", ["chat", "complete"])
async def test_a_prompt_asked_again_tells_what_was_cached(open_endpoint, route: str) -> None:
    async with open_endpoint(remembers=True) as endpoint:
        ask = getattr(endpoint, route)
        cold, warm = (await ask()).json(), (await ask()).json()
        assert cached(cold) == 0
        assert cached(warm) == warm["usage"]["prompt_tokens"] - 1 > 0
        streamed = await ask(stream=True, stream_options={"include_usage": True})
        assert last_usage(streamed)["usage"] == warm["usage"]


async def test_several_answers_count_a_prompt_once(open_endpoint) -> None:
    async with open_endpoint(remembers=True) as endpoint:
        # Its own first answer is no cache for the second: somebody had to compute the prompt.
        assert cached((await endpoint.complete(n=2)).json()) == 0
        again = (await endpoint.complete(n=2)).json()
        assert cached(again) == again["usage"]["prompt_tokens"] - 1
        two = (await endpoint.complete(["one two three", "four five"], n=2)).json()
        assert cached(two) == cached(again)


async def test_keys_never_share_pages_and_cannot_ask_for_it(open_endpoint) -> None:
    async with open_endpoint(remembers=True) as endpoint:
        app = create_app({"fake": endpoint.served}, endpoint.keys, cache_secret=SECRET)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:

            async def ask(key: str | None, **more: str) -> int:
                headers = {"Authorization": f"Bearer {key}"} if key else {}
                body = {"model": "fake", "prompt": "one two three", "max_tokens": 2, **more}
                return cached((await http.post("/v1/completions", json=body, headers=headers)).json())

            assert [await ask(None), await ask(None) > 0] == [0, True]
            first, second = endpoint.keys.create("first"), endpoint.keys.create("second")
            assert await ask(first, prompt_cache_key="same") == 0
            assert await ask(second, prompt_cache_key="same") == 0
            assert await ask(first) > 0
            assert await ask(second) > 0
    ids = [record.id for record in endpoint.keys.list()]
    salts = [request.cache_salt for request in endpoint.engine.requests]
    owners = [request.owner for request in endpoint.engine.requests]
    nobody, one, other = salt(SECRET, ""), *(salt(SECRET, each) for each in ids)
    assert salts == [nobody, nobody, one, other, one, other]
    assert owners == [b"", b"", *(owner_tag(SECRET, each) for each in ids * 2)]
