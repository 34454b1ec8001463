"""ShardwiseClient: our REST API as the faces see it, asynchronous. Finding a server is `app.background`'s.

Everything that a server sends is cleaned of control sequences here, before any face can show it.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal

import httpx

from app.cache_view import CacheView, read_cache
from app.health_view import Health, read_health
from app.peers_view import read_peers
from app.plan_view import EnginePlan, read_plans
from app.text_safety import TextCleaner, clean, clean_line
from backend.errors import ShardwiseError
from pipeline_ext.peer_view import PeersView

MAX_LINE_BYTES = 8 * 1024 * 1024
Role = Literal["system", "user", "assistant"]


class ServerUnreachableError(ShardwiseError):
    """No server answers at the URL, or the connection broke off."""

    code = "server_unreachable"


class ServerAnswerError(ShardwiseError):
    """The server refused a request, or sent something that is not our API."""

    code = "server_answer"


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation as the API takes it."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class SamplingChoice:
    """Sampling as a person chose it; None leaves the value to the server (the model's own default)."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A served model; `context` is the most positions of prompt plus answer, None where the server does not
    say."""

    id: str
    context: int | None


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer. `reasoning` is thinking that is not part of the answer proper."""

    text: str
    reasoning: bool = False


@dataclass(frozen=True, slots=True)
class AnswerStatistics:
    """Figures of one answer: tokens, seconds to the first token, tokens a second after it. None where
    unknown."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    time_to_first_token: float | None = None
    tokens_per_second: float | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The last item of an answer: why it ended (stop, length, ...) and its figures."""

    reason: str
    statistics: AnswerStatistics


class AnswerClock:
    """Measures one answer as the client sees it: from sending to the first piece, and the pace after it."""

    def __init__(self) -> None:
        self._sent = perf_counter()
        self._first: float | None = None
        self._last = self._sent
        self._pieces = 0

    def piece(self) -> None:
        self._last = perf_counter()
        self._first = self._last if self._first is None else self._first
        self._pieces += 1

    def statistics(self, prompt_tokens: int | None = None, tokens: int | None = None) -> AnswerStatistics:
        """Figures so far; without the server's count of `tokens`, the pace counts pieces."""
        if self._first is None:
            return AnswerStatistics(prompt_tokens, tokens)
        counted = self._pieces if tokens is None else tokens
        seconds = self._last - self._first
        pace = (counted - 1) / seconds if counted > 1 and seconds > 0 else None
        return AnswerStatistics(prompt_tokens, tokens, self._first - self._sent, pace)


class ShardwiseClient:
    """One server, at `url` (without `/v1`), with an API key where it asks for one. Close it with `aclose`."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._http = self._make_http(key)

    def _make_http(self, key: str | None) -> httpx.AsyncClient:
        try:
            parsed = httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise _not_a_url(self.url) from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise _not_a_url(self.url)
        loopback = parsed.host in ("127.0.0.1", "localhost", "::1")
        return httpx.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"} if key else None,
            # No limit on reading: a long prompt may take minutes before its first token.
            timeout=httpx.Timeout(10.0, read=None),
            # A proxy of the environment must not catch what goes to this machine.
            trust_env=not loopback,
            # Loading the certificates takes a quarter of a second, which plain HTTP can do without.
            verify=ssl.create_default_context() if parsed.scheme == "https" else False,
        )

    async def aclose(self) -> None:
        await self._http.aclose()

    async def health(self) -> Health:
        """The server's own word on its state.

        Raises:
            ServerUnreachableError: nobody answers.
            ServerAnswerError: somebody else answers.
        """
        try:
            response = await self._http.get("/health", timeout=5.0)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        try:
            return read_health(response.json())
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ServerAnswerError(
                f"{self.url} is not a shardwise server",
                f"Its /health answered {response.status_code} with something else.",
                "Check the address and the port.",
            ) from error

    async def models(self) -> tuple[ModelInfo, ...]:
        """The models that requests can name, the main one first."""
        try:
            response = await self._http.get("/v1/models", timeout=10.0)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if response.status_code != httpx.codes.OK:
            raise self._refused(response.status_code, response.content)
        try:
            return tuple(_model(each) for each in response.json()["data"])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ServerAnswerError(f"{self.url}/v1/models sent something that is not a list of models") from error

    async def cache(self) -> CacheView:
        """What the server's cache holds."""
        try:
            response = await self._http.get("/cache", timeout=5.0)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if response.status_code != httpx.codes.OK:
            raise self._refused(response.status_code, response.content)
        try:
            return read_cache(response.content)
        except ValueError as error:
            raise ServerAnswerError(f"{self.url}/cache sent something that is not a cache's state") from error

    async def peers(self) -> PeersView:
        """The machines that the server stands on, its own first."""
        try:
            response = await self._http.get("/peers", timeout=5.0)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if response.status_code != httpx.codes.OK:
            raise self._refused(response.status_code, response.content)
        try:
            return read_peers(response.content)
        except ValueError as error:
            raise ServerAnswerError(f"{self.url}/peers sent something that is not a list of machines") from error

    async def plan(self) -> tuple[EnginePlan, ...]:
        """Each engine's Plan beside the memory its ranks take now, the main engine first.

        Raises:
            ServerUnreachableError: nobody answers.
            ServerAnswerError: no engine serves yet, in the server's words, or the answer is something else.
        """
        try:
            response = await self._http.get("/plan", timeout=10.0)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if response.status_code != httpx.codes.OK:
            raise self._refused(response.status_code, response.content)
        try:
            return read_plans(response.content)
        except ValueError as error:
            raise ServerAnswerError(f"{self.url}/plan sent something that is not a plan") from error

    async def chat(
        self, model: str, messages: tuple[ChatMessage, ...], sampling: SamplingChoice | None = None
    ) -> AsyncIterator[Delta | Finished]:
        """Streams an answer: Deltas, then exactly one Finished. Closing the iterator early cancels it on the
        server.

        Raises:
            ServerUnreachableError: the connection failed or broke off.
            ServerAnswerError: the server refused the request or ended it with an error.
        """
        body = _chat_body(model, messages, sampling or SamplingChoice())
        clock = AnswerClock()
        answer = _AnswerReader(clock)
        try:
            async with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.status_code != httpx.codes.OK:
                    raise self._refused(response.status_code, await response.aread())
                async for data in _server_sent(response):
                    if data == "[DONE]":
                        break
                    for delta in answer.read(data):
                        yield delta
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if answer.reason is None:
            raise ServerUnreachableError(
                "The answer broke off",
                f"{self.url} closed the connection before the end.",
                "Try again (regenerate).",
            )
        yield Finished(answer.reason, clock.statistics(answer.prompt_tokens, answer.completion_tokens))

    def _unreachable(self, error: httpx.HTTPError) -> ServerUnreachableError:
        return ServerUnreachableError(
            f"No server answers at {self.url}",
            clean_line(str(error)) or type(error).__name__,
            "Start one with `shardwise serve MODEL`, or check the address.",
        )

    def _refused(self, status: int, content: bytes) -> ServerAnswerError:
        if status in (401, 403):
            return ServerAnswerError(
                f"{self.url} asks for an API key",
                f"It answered {status}.",
                "Set SHARDWISE_API_KEY, or pass --key.",
            )
        try:
            message = str(json.loads(content)["error"]["message"])
        except (ValueError, TypeError, KeyError):
            message = content[:2000].decode(errors="replace")
        lines = [line for line in clean(message).splitlines() if line.strip()]
        what = lines[0] if lines else f"The server answered {status}"
        return ServerAnswerError(what, "\n".join(lines[1:-1]), lines[-1] if len(lines) > 1 else "")


class _AnswerReader:
    """Reads the chunks of one streamed answer; cleans its texts across chunks."""

    def __init__(self, clock: AnswerClock) -> None:
        self._clock = clock
        self._cleaners = {False: TextCleaner(), True: TextCleaner()}
        self.reason: str | None = None
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None

    def read(self, data: str) -> list[Delta]:
        """The Deltas of one chunk; the reason and the usage are kept."""
        try:
            chunk = json.loads(data)
            if "error" in chunk:
                raise ServerAnswerError(clean(str(chunk["error"].get("message", "The answer failed"))))
            usage = chunk.get("usage")
            if usage:
                self.prompt_tokens = int(usage["prompt_tokens"])
                self.completion_tokens = int(usage["completion_tokens"])
            deltas: list[Delta] = []
            for choice in chunk.get("choices", ()):
                deltas += self._choice(choice)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ServerAnswerError("The server sent a chunk that is not a chat completion") from error
        return deltas

    def _choice(self, choice: dict[str, Any]) -> list[Delta]:
        found: list[Delta] = []
        delta = choice.get("delta") or {}
        for reasoning, text in (
            (True, delta.get("reasoning_content") or delta.get("reasoning")),
            (False, delta.get("content")),
        ):
            if text:
                self._clock.piece()
                safe = self._cleaners[reasoning].feed(str(text))
                if safe:
                    found.append(Delta(safe, reasoning))
        if choice.get("finish_reason"):
            self.reason = clean_line(str(choice["finish_reason"]))
        return found


async def _server_sent(response: httpx.Response) -> AsyncIterator[str]:
    """The data fields of an event stream, split at line feeds only (httpx's lines also split at U+2028 inside
    JSON)."""
    pending = bytearray()
    async for part in response.aiter_bytes():
        pending += part
        if len(pending) > MAX_LINE_BYTES:
            raise ServerAnswerError("The server sent a line of more than 8 MiB")
        if b"\n" not in part:
            continue
        lines = pending.split(b"\n")
        pending = lines.pop()
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip().decode(errors="replace")


def _not_a_url(url: str) -> ShardwiseError:
    return ServerUnreachableError(
        f"{clean_line(url)!r} is not the address of a server", "", "Write it like http://127.0.0.1:8000."
    )


def _chat_body(model: str, messages: tuple[ChatMessage, ...], sampling: SamplingChoice) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": each.role, "content": each.content} for each in messages],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    for name in SamplingChoice.__dataclass_fields__:
        value = getattr(sampling, name)
        if value is not None:
            body["max_completion_tokens" if name == "max_tokens" else name] = value
    return body


def _model(body: dict[str, Any]) -> ModelInfo:
    context = body.get("max_model_len") or body.get("context_length")
    return ModelInfo(clean_line(str(body["id"]), 4096), int(context) if context else None)
