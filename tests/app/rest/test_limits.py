"""What is too large, too deep, too slow or compressed is refused, in OpenAI's shape, and soon."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import time

import pytest

from app.rest.errors import ApiError
from app.rest.limits import check_json
from app.rest.settings import RestSettings

JSON = {"content-type": "application/json"}


async def refused(endpoint, status: int, **request) -> str:
    answer = await endpoint.http.post("/v1/chat/completions", **request)
    assert answer.status_code == status, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert (await endpoint.chat()).status_code == 200
    return answer.json()["error"]["message"]


async def test_a_body_over_the_limit(open_endpoint):
    async with open_endpoint(RestSettings(body_bytes=2000)) as endpoint:
        assert "2000 bytes" in await refused(endpoint, 413, content=b"x" * 2001, headers=JSON)

        async def parts():
            for _ in range(30):
                yield b"x" * 100

        await refused(endpoint, 413, content=parts(), headers=JSON)
        await refused(endpoint, 413, content=b"", headers={**JSON, "content-length": "9" * 30})


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "identity, gzip"])
async def test_compressed_bodies(endpoint, encoding: str):
    await refused(endpoint, 415, content=gzip.compress(b"{}"), headers={**JSON, "content-encoding": encoding})


async def test_headers(endpoint):
    await refused(endpoint, 431, headers={f"x-{index}": "a" for index in range(120)})
    await refused(endpoint, 431, headers={"x-long": "a" * 40_000})
    assert (await endpoint.http.get("/v1/models/" + "a" * 9000)).status_code == 414


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000, b'{"a":' * 1000 + b"1" + b"}" * 1000, b'{"messages":' + b"[" * 65 + b"]" * 65 + b"}",
        b"", b"{", b"\xff\xfe", b'"\xc3("', b"[]", b"null", b"123", b'{"model": NaN}', b'{"a": 1e999}', b"\x00",
        b'{"model":"\xed\xa0\x80"}',
    ],
)  # fmt: skip
async def test_bodies_that_are_no_requests(endpoint, body: bytes):
    began = time.process_time()
    await refused(endpoint, 400, content=body, headers=JSON)
    assert time.process_time() - began < 0.5


async def test_other_types_of_content(endpoint):
    body = json.dumps({"model": "fake", "messages": [{"role": "user", "content": "x"}]}).encode()
    await refused(endpoint, 400, content=body, headers={"content-type": "text/plain"})


async def test_a_slow_body(open_endpoint):
    async with open_endpoint(RestSettings(body_seconds=0.1)) as endpoint:

        async def parts():
            yield b"{"
            await asyncio.sleep(0.5)
            yield b"}"

        await refused(endpoint, 408, content=parts(), headers=JSON)


def test_depth_is_counted_outside_of_texts_only():
    settings = RestSettings(json_depth=3, json_containers=10)
    check_json(json.dumps({"a": "[" * 1000 + '\\"' + "{" * 50}).encode(), settings)
    check_json(b'[[[1]],[[1]],"\\\\",[[["]"]]]'.replace(b'[[["]"]]]', b'[["]"]]'), settings)
    with pytest.raises(ApiError, match="deeper than 3"):
        check_json(b'["[]",[[[1]]]]', settings)
    with pytest.raises(ApiError, match="more than 10"):
        check_json(b"[" + b"[]," * 10 + b"[]]", settings)


@pytest.mark.parametrize(
    "body", [b"[" * 8_000_000, b'"' * 8_000_000, b'\\"' * 4_000_000, b'["\\' * 2_000_000, b"[]," * 2_600_000]
)
def test_eight_megabytes_are_checked_in_under_a_second(body: bytes):
    began = time.process_time()
    with contextlib.suppress(ApiError):
        check_json(body, RestSettings())
    assert time.process_time() - began < 1.0


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nope", 404), ("GET", "/v1/chat/completions", 405), ("DELETE", "/v1/models", 405), ("GET", "/v1", 404)],
)
async def test_unknown_paths_and_methods_have_the_same_shape(endpoint, method: str, path: str, status: int):
    answer = await endpoint.http.request(method, path)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
