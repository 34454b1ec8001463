"""DoorMiddleware: who may call at all: the Host and Origin a request names, and its API key. Plain ASGI, raw path.

Deny by default: without a valid key, nothing but `/health` is answered where keys are asked for, whatever the path.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from app.keys import KeyStore
from app.rest.errors import ApiError, error_response
from app.rest.settings import LOOPBACK_HOSTS, RestSettings

_OPEN_PATH = b"/health"
_KEY_ID = "shardwise.key_id"


class DoorMiddleware:
    """Refuses strangers before anything of a request but its head was read."""

    def __init__(self, app: ASGIApp, keys: KeyStore, settings: RestSettings) -> None:
        self._app, self._keys = app, keys
        self._origins = frozenset(origin.rstrip("/").lower() for origin in settings.allowed_origins)
        names = [*LOOPBACK_HOSTS, *settings.allowed_hosts] if settings.loopback else settings.allowed_hosts
        self._hosts = frozenset(name.lower() for name in names) or None
        # Once keys were asked for, revoking the last one must not open the door.
        self._locked = settings.require_key or not settings.loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope) if scope["type"] == "http" else ApiError("Not served", status=403)
        if refusal is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            headers = {"WWW-Authenticate": "Bearer"} if refusal.status == 401 else None
            await error_response(refusal, headers)(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = scope["headers"]
        host = _only(headers, b"host")
        if self._hosts is not None and (host is None or _host_name(host) not in self._hosts):
            return ApiError(
                "This server does not answer to that host name",
                status=403,
                code="host_not_allowed",
                why="It answers to localhost and the names in the setting allowed_hosts.",
            )
        if not self._origin_allowed(headers, host):
            return ApiError(
                "This server does not take requests from other web pages",
                status=403,
                code="origin_not_allowed",
                why="The setting allowed_origins can name a page's origin.",
            )
        return None if self._key_allowed(scope) else _no_key()

    def _origin_allowed(self, headers: Sequence[tuple[bytes, bytes]], host: str | None) -> bool:
        if not any(name == b"origin" for name, _ in headers):
            return True
        origin = (_only(headers, b"origin") or "null").lower()
        if origin in self._origins:
            return True
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        return parts.scheme in ("http", "https") and host is not None and parts.netloc == host.lower()

    def _key_allowed(self, scope: Scope) -> bool:
        if scope.get("raw_path") == _OPEN_PATH and scope["path"] == _OPEN_PATH.decode():
            return True
        self._locked = self._locked or self._keys.in_use()
        if not self._locked:
            return True
        key = _presented_key(scope["headers"])
        found = None if key is None else self._keys.id_of(key)
        if found is not None:
            scope[_KEY_ID] = found
        return found is not None


def key_id(scope: Scope) -> str:
    """The id of the API key that a request came with; empty where none was asked for."""
    found = scope.get(_KEY_ID, "")
    return found if isinstance(found, str) else ""


def on_loopback(request: Request) -> bool:
    """Whether the caller is on this machine."""
    try:
        return request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False


def _no_key() -> ApiError:
    return ApiError(
        "An API key is needed",
        status=401,
        code="invalid_api_key",
        why="Send it as `Authorization: Bearer KEY`; `shardwise keys create NAME` makes one.",
    )


def _only(headers: Sequence[tuple[bytes, bytes]], wanted: bytes) -> str | None:
    """A header's value; None where it is missing, comes twice or is not ASCII."""
    found = [value for name, value in headers if name == wanted]
    if len(found) != 1 or not found[0].isascii():
        return None
    return found[0].decode().strip()


def _host_name(host: str) -> str:
    """A Host header without its port, in lower case."""
    name, colon, port = host.lower().rpartition(":")
    # An IPv6 address has colons of its own, within brackets.
    return name if colon and port.isdigit() else host.lower()


def _presented_key(headers: Sequence[tuple[bytes, bytes]]) -> str | None:
    authorization = _only(headers, b"authorization")
    if authorization is not None:
        scheme, _, key = authorization.partition(" ")
        return key.strip() if scheme.lower() == "bearer" else None
    return _only(headers, b"x-api-key")
