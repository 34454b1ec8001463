"""LoadServer: an OpenAI-compatible server under load, one measured request at a time; the loop is `run`'s."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter
from typing import Any, Literal

import httpx
from msgspec import Struct

from app.client import ServerAnswerError, ServerUnreachableError
from app.load.prompts import Counter

Endpoint = Literal["completions", "chat"]
_REFUSED = (400, 422)


class Answer(Struct, frozen=True, kw_only=True):
    """One request's measurements, in seconds from just before it was sent.

    Attributes:
        error: empty where the answer was complete: HTTP 200, some text, a finish, no error event.
        first: until the first chunk with text; None where none came.
        last: until the last chunk with text.
        latency: until the stream's end.
        gaps: between chunks with text.
        output_tokens: by the server's usage, else the number of chunks with text.
        cached_tokens: prompt tokens that the server says it had cached; None where it does not say.
    """

    error: str = ""
    status: int | None = None
    first: float | None = None
    last: float | None = None
    latency: float = 0.0
    gaps: tuple[float, ...] = ()
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int | None = None
    counted: bool = False


@dataclass(frozen=True, slots=True)
class Extras:
    """Request fields that not every server takes: forcing the length, and asking for usage in the stream."""

    force_length: bool = True
    usage: bool = True


class LoadServer:
    """Speaks to one server. Each request has a connection of its own, so that no reused one is closed under
    it.

    Raises (all methods but `ask`): ServerUnreachableError, ServerAnswerError.
    """

    def __init__(self, url: str, *, model: str | None, endpoint: Endpoint, key: str | None, timeout: float) -> None:
        self._base = url.rstrip("/").removesuffix("/v1")
        self._model, self._endpoint = model, endpoint
        self._extras = Extras()
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout, connect=60.0, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            trust_env=False,
        )

    @property
    def model(self) -> str:
        return self._model or ""

    @property
    def length_forced(self) -> bool:
        return self._extras.force_length

    async def close(self) -> None:
        await self._http.aclose()

    async def prepare(self, prompt: str) -> None:
        """Finds the model where none was named, and by a short request which extra fields are taken."""
        if self._model is None:
            self._model = await self._first_model()
        answer = Answer()
        for extras in (Extras(), Extras(usage=False), Extras(force_length=False), Extras(False, False)):
            self._extras = extras
            answer = await self.ask(prompt, 4)
            if answer.status not in _REFUSED:
                break
        if answer.status is None:
            raise ServerUnreachableError(
                f"No server answers at {self._base}.", answer.error, "Start one: shardwise serve MODEL"
            )
        if answer.error:
            raise ServerAnswerError(f"The server at {self._base} refused a short request.", answer.error)

    async def counter(self) -> Counter | None:
        """Counts tokens by the server's own /tokenize; None where it has none."""
        try:
            await self._count("a")
        except (httpx.HTTPError, KeyError, TypeError, ValueError):
            return None
        return self._count

    async def metrics(self) -> str:
        """The server's /metrics text; empty where it has none."""
        try:
            response = await self._http.get(f"{self._base}/metrics")
        except httpx.HTTPError:
            return ""
        return response.text if response.status_code == 200 else ""

    async def ask(self, prompt: str, output_tokens: int) -> Answer:
        """Sends one prompt and measures the answer; what goes wrong is in the Answer."""
        path = "/v1/chat/completions" if self._endpoint == "chat" else "/v1/completions"
        body = json.dumps(self._body(prompt, output_tokens)).encode()  # built before the clock starts
        begin = perf_counter()
        reading = _Reading(begin)
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        try:
            async with self._http.stream("POST", self._base + path, content=body, headers=headers) as response:
                if response.status_code != 200:
                    detail = (await response.aread())[:300].decode("utf-8", "replace")
                    return Answer(status=response.status_code, error=f"HTTP {response.status_code}: {detail}")
                async for line, moment in _lines(response):
                    reading.take(line, moment)
        except (httpx.HTTPError, ValueError) as error:
            return Answer(status=reading.status, error=f"{type(error).__name__}: {error}"[:300])
        return reading.answer(perf_counter())

    def _body(self, prompt: str, output_tokens: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "max_tokens": output_tokens,
            "temperature": 0,
            "stream": True,
        }
        if self._endpoint == "chat":
            body["messages"] = [{"role": "user", "content": prompt}]
        else:
            body["prompt"] = prompt
        if self._extras.usage:
            body["stream_options"] = {"include_usage": True}
        if self._extras.force_length:
            body |= {"ignore_eos": True, "min_tokens": output_tokens}
        return body

    async def _count(self, text: str) -> int:
        response = await self._http.post(
            f"{self._base}/tokenize", json={"model": self._model, "prompt": text, "add_special_tokens": True}
        )
        response.raise_for_status()
        return int(response.json()["count"])

    async def _first_model(self) -> str:
        try:
            response = await self._http.get(f"{self._base}/v1/models")
            response.raise_for_status()
            return str(response.json()["data"][0]["id"])
        except httpx.TransportError as error:
            raise ServerUnreachableError(
                f"No server answers at {self._base}.", str(error), "Start one: shardwise serve MODEL"
            ) from error
        except (httpx.HTTPStatusError, LookupError, TypeError, ValueError) as error:
            raise ServerAnswerError(
                f"The server at {self._base} does not say which model it serves.",
                str(error),
                "Name it with --model.",
            ) from error


async def _lines(response: httpx.Response) -> AsyncIterator[tuple[bytes, float]]:
    """The lines of a stream, each with the moment at which its last byte came."""
    rest = b""
    async for data in response.aiter_raw():
        moment = perf_counter()
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line.strip(), moment


class _Reading:
    """One answer as it comes in."""

    def __init__(self, begin: float) -> None:
        self._begin = begin
        self._moments: list[float] = []
        self._finished = False
        self._answer = Answer(status=200)
        self.status: int | None = None

    def take(self, line: bytes, moment: float) -> None:
        """One line of the stream. Raises ValueError on broken JSON."""
        self.status = 200
        if not line.startswith(b"data:"):
            return
        value = line[5:].strip()
        if value == b"[DONE]":
            self._finished = True
            return
        event = json.loads(value)
        if event.get("error"):
            raise ValueError("error event: " + json.dumps(event["error"]))
        self._take_usage(event.get("usage") or {})
        for choice in (event.get("choices") or [])[:1]:
            self._finished = self._finished or bool(choice.get("finish_reason"))
            if choice.get("text") or _delta_text(choice.get("delta") or {}):
                self._moments.append(moment)

    def _take_usage(self, usage: dict[str, Any]) -> None:
        if usage.get("completion_tokens") is None:
            return
        details = usage.get("prompt_tokens_details") or {}
        self._answer = Answer(
            status=200,
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            output_tokens=int(usage["completion_tokens"]),
            cached_tokens=details.get("cached_tokens"),
            counted=True,
        )

    def answer(self, end: float) -> Answer:
        moments = self._moments
        if not moments:
            return Answer(status=200, error="no text in the answer")
        if not self._finished:
            return Answer(status=200, error="the stream ended without a finish")
        known = self._answer
        return Answer(
            status=200,
            first=moments[0] - self._begin,
            last=moments[-1] - self._begin,
            latency=end - self._begin,
            gaps=tuple(after - before for before, after in pairwise(moments)),
            prompt_tokens=known.prompt_tokens,
            output_tokens=known.output_tokens if known.counted else len(moments),
            cached_tokens=known.cached_tokens,
            counted=known.counted,
        )


def _delta_text(delta: dict[str, Any]) -> str:
    return str(delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning") or "")
