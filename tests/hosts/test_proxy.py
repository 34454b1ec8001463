"""Bytes pass the proxy in order, later and slower where asked, not while it is frozen, and not after a cut."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tests.hosts.proxy import Proxy

Ends = tuple[Proxy, asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def through() -> AsyncIterator[Ends]:
    """A connection to an echo through a proxy; all of it is closed afterwards."""
    ended = asyncio.Event()

    async def say_back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.transport.abort()
        ended.set()

    echo = await asyncio.start_server(say_back, "127.0.0.1", 0)
    proxy = Proxy(("127.0.0.1", echo.sockets[0].getsockname()[1]))
    server = await proxy.serve(("127.0.0.1", 0))
    reader, writer = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
    yield proxy, reader, writer
    server.close()
    echo.close()
    writer.transport.abort()
    proxy.obey("thaw")
    await asyncio.wait_for(ended.wait(), 10)
    while proxy.connections:  # noqa: ASYNC110 - for the end of a test only
        await asyncio.sleep(0.01)


async def test_everything_arrives_in_order_and_an_end_is_an_end(through: Ends) -> None:
    _, reader, writer = through
    sent = bytes(range(256)) * 4000
    writer.write(sent)
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(-1), 10) == sent


async def test_a_delay_counts_each_way_and_pieces_do_not_wait_for_each_other(through: Ends) -> None:
    proxy, reader, writer = through
    proxy.obey("shape 0.05 0")
    began = asyncio.get_running_loop().time()
    for _ in range(10):
        writer.write(b"x")
        await asyncio.sleep(0.005)
    await reader.readexactly(10)
    assert asyncio.get_running_loop().time() - began >= 0.1


async def test_a_frozen_proxy_says_nothing_and_forgets_nothing(through: Ends) -> None:
    proxy, reader, writer = through
    proxy.obey("freeze")
    writer.write(b"later")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.2)
    proxy.obey("thaw")
    assert await asyncio.wait_for(reader.readexactly(5), 10) == b"later"


async def test_a_cut_resets_what_is_open_and_takes_nothing_new(through: Ends) -> None:
    proxy, reader, writer = through
    writer.write(b"x")
    await reader.readexactly(1)
    proxy.obey("cut")
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.read(1), 10)
    with pytest.raises(ValueError, match="not an order"):
        proxy.obey("bend")
