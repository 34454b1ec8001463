"""A client that goes away frees its place at once, in each phase; one that reads slowly costs nobody else anything."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable

import pytest


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def connect(port: int, **body: object) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection on which a chat was asked for."""
    asked = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}], "ignore_eos": True, **body}
    data = json.dumps(asked).encode()
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=client, limit=1024)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n"
    writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + data)
    await writer.drain()
    return reader, writer


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("phase", ["waiting", "prefill", "decode"])
async def test_leaving_cancels_in_each_phase(open_endpoint, listen, phase: str, stream: bool, n: int):
    slow = {
        "waiting": {"waiting": asyncio.Event()},
        "prefill": {"first_delay": 60.0},
        "decode": {"delay": 0.01},
    }[phase]
    async with open_endpoint(**slow) as endpoint, listen(endpoint.app) as port:
        engine = endpoint.engine
        _, writer = await connect(port, stream=stream, n=n)
        await until(lambda: len(engine.running) == n and (phase != "decode" or engine.generated > 3 * n))
        writer.close()
        await until(lambda: not engine.running)
        assert len(engine.cancelled) == n
        assert engine.ended == []
        generated = engine.generated
        await asyncio.sleep(0.05)
        assert engine.generated == generated


async def test_leaving_while_the_engine_starts(open_endpoint, listen):
    async with open_endpoint(max_context=None, state="starting") as endpoint, listen(endpoint.app) as port:
        asked = asyncio.Event()

        async def never(timeout: float | None = None) -> bool:  # noqa: ASYNC109
            asked.set()
            try:
                await asyncio.Event().wait()
            finally:
                asked.clear()
            return False

        endpoint.engine.wait_ready = never
        _, writer = await connect(port)
        await until(asked.is_set)
        writer.close()
        await until(lambda: not asked.is_set())
        assert endpoint.engine.requests == []


async def test_a_slow_reader_does_not_hold_up_the_others(open_endpoint, listen):
    async with open_endpoint(max_context=200_000) as endpoint, listen(endpoint.app) as port:
        _, slow = await connect(port, stream=True, max_tokens=100_000)
        await until(lambda: endpoint.engine.generated > 100)
        before = endpoint.engine.generated
        for _ in range(3):
            reader, writer = await connect(port, stream=False, max_tokens=20)
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            writer.close()
        # Once the socket's buffers are full, its tokens are not even taken from the engine.
        held = 0
        async with asyncio.timeout(20):
            while held != endpoint.engine.generated:
                held = endpoint.engine.generated
                await asyncio.sleep(0.2)
        assert before < held < 100_000
        slow.close()
        await until(lambda: not endpoint.engine.running)


async def test_sixteen_streams_end_once_each(open_endpoint, listen):
    async with open_endpoint() as endpoint, listen(endpoint.app) as port:
        async with asyncio.timeout(20):
            answers = await asyncio.gather(*(asyncio.wait_for(read_all(port, 20 + n), 20) for n in range(16)))
        assert [answer.count(b'"finish_reason":"length"') for answer in answers] == [1] * 16
        assert len(endpoint.engine.ended) == 16
        assert endpoint.engine.cancelled == []


async def read_all(port: int, count: int) -> bytes:
    reader, writer = await connect(port, stream=True, max_tokens=count)
    data = b""
    while b"[DONE]" not in data:
        part = await reader.read(4096)
        assert part
        data += part
    writer.close()
    return data
