"""Keys, Host and Origin, over every route and the tricks that have opened others' doors."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi.routing import APIRoute

from app.rest.settings import RestSettings

TRICKS = [
    "//v1/models", "/v1//models", "/%76%31/models", "/v1%2fmodels", "/health/../v1/models", "/health/", "//health",
    "/health%2f..%2fv1%2fmodels", "/health;/v1/models", "/%68ealth", "/HEALTH", "/health%00", "/metrics/", "/nope",
    "/openapi.json", "/docs", "/v1/models?x=/health", "/v1/models#/health",
]  # fmt: skip


async def send_raw(port: int, request: bytes, timeout: float = 5.0) -> bytes:  # noqa: ASYNC109
    """What a server answers to bytes, until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    async with asyncio.timeout(timeout):
        answer = await reader.read()
    writer.close()
    return answer


def request(path: str, *headers: str, method: str = "GET", host: str = "localhost") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode()


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def all_routes(routes: list[Any]) -> list[Any]:
    """The routes with those of included routers."""
    found: list[Any] = []
    for route in routes:
        inner = getattr(route, "original_router", None)
        found += [route] if inner is None else all_routes(inner.routes)
    return found


async def test_with_a_key_every_route_but_health_needs_it(endpoint):
    key = endpoint.keys.create("me")
    walked = 0
    routes = all_routes(endpoint.app.routes)
    for route in routes:
        for method in route.methods:
            path = route.path.replace("{model:path}", "fake")
            stranger = await endpoint.http.request(method, path)
            assert stranger.status_code == (200 if path == "/health" else 401), path
            if path != "/health":
                assert stranger.headers["www-authenticate"] == "Bearer"
                assert method == "HEAD" or stranger.json()["error"]["code"] == "invalid_api_key"
            for headers in ({"Authorization": f"Bearer {key}"}, {"x-api-key": key}):
                assert (await endpoint.http.request(method, path, headers=headers)).status_code != 401
            walked += 1
    assert walked >= 10
    assert all(isinstance(route, APIRoute) or route.path.startswith("/openapi") for route in routes)


@pytest.mark.parametrize("http", ["h11", "httptools"])
async def test_tricks_with_paths_open_nothing(endpoint, listen, http: str):
    endpoint.keys.create("me")
    async with listen(endpoint.app, http=http) as port:
        for path in TRICKS:
            for method in ("GET", "POST", "OPTIONS", "HEAD", "FOO"):
                answer = status(await send_raw(port, request(path, method=method)))
                assert answer in (400, 401), (method, path, answer)
        assert status(await send_raw(port, request("/health"))) == 200
        assert status(await send_raw(port, request("/health?x=1"))) == 200
        for uri in ("http://localhost/v1/models", "http://localhost/health/../v1/models", "*"):
            assert status(await send_raw(port, request(uri))) in (400, 401)


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Basic {key}", "{key}", "Bearer {key}x", "Bearer x{key}", "Bearer {hash}"],
)
async def test_wrong_keys_are_refused(endpoint, header: str):
    key = endpoint.keys.create("me")
    value = header.format(key=key, hash=endpoint.keys.list()[0].hash)
    answer = await endpoint.http.get("/v1/models", headers={"Authorization": value})
    assert answer.status_code == 401
    assert (await endpoint.http.get("/v1/models", headers={"Authorization": f"bearer {key}"})).status_code == 200


async def test_two_authorizations_are_none(endpoint):
    key = endpoint.keys.create("me")
    headers = [("Authorization", f"Bearer {key}"), ("Authorization", "Bearer other")]
    assert (await endpoint.http.get("/v1/models", headers=headers)).status_code == 401


async def test_revoking_the_last_key_locks(endpoint):
    assert (await endpoint.http.get("/v1/models")).status_code == 200
    key = endpoint.keys.create("me")
    headers = {"Authorization": f"Bearer {key}"}
    assert (await endpoint.http.get("/v1/models", headers=headers)).status_code == 200
    endpoint.keys.revoke("me")
    assert (await endpoint.http.get("/v1/models", headers=headers)).status_code == 401
    assert (await endpoint.http.get("/v1/models")).status_code == 401


@pytest.mark.parametrize("settings", [RestSettings(require_key=True), RestSettings(loopback=False)])
async def test_a_key_is_asked_for_where_none_exists(open_endpoint, settings: RestSettings):
    async with open_endpoint(settings) as endpoint:
        assert (await endpoint.http.get("/v1/models")).status_code == 401
        assert (await endpoint.http.get("/health")).status_code == 200


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", 200), ("localhost:8000", 200), ("127.0.0.1:1", 200), ("[::1]:8000", 200), ("LOCALHOST", 200),
        ("evil.example", 403), ("localhost.evil.example", 403), ("127.0.0.1.evil.example:80", 403),
        ("localhost:80:80", 403), ("", 403), ("localhost@evil.example", 403), ("[::1].evil.example", 403),
    ],
)  # fmt: skip
async def test_on_loopback_only_loopback_names_are_answered(endpoint, host: str, expected: int):
    for path in ("/health", "/v1/models"):
        answer = await endpoint.http.get(path, headers={"Host": host})
        assert answer.status_code == expected
    if expected == 403:
        assert answer.json()["error"]["code"] == "host_not_allowed"


async def test_allowed_hosts_are_answered_too(open_endpoint):
    async with open_endpoint(RestSettings(allowed_hosts=("box.lan",))) as endpoint:
        assert (await endpoint.http.get("/health", headers={"Host": "box.lan:8000"})).status_code == 200
        assert (await endpoint.http.get("/health", headers={"Host": "other.lan"})).status_code == 403


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "DELETE"])
@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost:8000", True), ("https://chat.example", True), ("http://evil.example", False),
        ("null", False), ("http://localhost:3000", False), ("file://localhost:8000", False), ("", False),
        ("http://localhost:8000.evil.example", False), ("http://[", False),
    ],
)  # fmt: skip
async def test_other_pages_are_refused_on_every_method(open_endpoint, method: str, origin: str, allowed: bool):
    async with open_endpoint(RestSettings(allowed_origins=("https://chat.example",))) as endpoint:
        for path in ("/health", "/v1/chat/completions"):
            answer = await endpoint.http.request(method, path, headers={"Origin": origin})
            assert (answer.status_code == 403) is not allowed
            assert not any(name.startswith("access-control") for name in answer.headers)


async def test_two_hosts_and_no_host_are_refused(endpoint, listen):
    async with listen(endpoint.app) as port:
        assert status(await send_raw(port, request("/health", "Host: localhost"))) in (400, 403)
        assert status(await send_raw(port, b"GET /health HTTP/1.0\r\n\r\n")) == 403


async def test_websockets_are_closed(endpoint):
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    scope = {"type": "websocket", "path": "/health", "raw_path": b"/health", "headers": [(b"host", b"localhost")]}
    await endpoint.app(scope, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]
