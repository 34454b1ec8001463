"""The page map and the cache's figures in the terminal app, live, and also where a server tells nothing or nonsense."""

from __future__ import annotations

import msgspec
import pytest
from textual.pilot import Pilot

from app.background import ServerRecord
from app.cache_view import read_cache
from app.tui import cache_words
from app.tui.app import ShardwiseApp
from app.tui.screens.cache import CacheScreen
from app.tui.screens.chat import ChatScreen
from app.tui.widgets.page_map import PageMap, merged
from app.tui.widgets.status_line import StatusLine
from kvcache.statistics import CacheMap, CacheStatistics
from tests.fakes.fake_server import FakeServer
from tests.fakes.tui import Outside, chat_screen, on_screen, until

CACHE = CacheStatistics(
    pages_total=3000, pages_free=880, pages_used=1020, pages_shared=300, pages_cached=1100, page_bytes=196_608,
    host_pages_total=5000, host_pages_used=600, disk_bytes_total=10**10, disk_bytes_used=1_200_000_000, disk_pages=6000,
    lookup_tokens=90_000, hit_tokens=61_200, host_hit_tokens=9000, disk_hit_tokens=1200, offloaded_pages=1900,
    host_fetched_pages=740, stored_pages=6000, disk_fetched_pages=88,
)  # fmt: skip
CELLS = "3" * 100 + "2" * 240 + "1" * 366 + "0" * 294


def body(cells: str = CELLS) -> dict:
    return {"model": "m", "statistics": msgspec.structs.asdict(CACHE), "map": {"pages_per_cell": 3, "device": cells}}


@pytest.mark.parametrize("size", [(80, 24), (160, 48)], ids=["80x24", "160x48"])
def test_cache(snap_compare, outside: Outside, fake: FakeServer, size: tuple[int, int]) -> None:
    fake.cache = body()
    outside.running = ServerRecord(1, fake.url, fake.model)

    async def run(pilot: Pilot) -> None:
        await chat_screen(pilot)
        await pilot.press("ctrl+t")
        screen = await on_screen(pilot, CacheScreen)
        await until(pilot, lambda: "█" in str(screen.query_one(PageMap).render()))
        await pilot.pause(0.2)

    assert snap_compare(ShardwiseApp(outside.dependencies()), terminal_size=size, run_before=run)


async def test_the_map_follows_the_server_and_the_key_leads_back(connected: ShardwiseApp, fake: FakeServer) -> None:
    fake.cache = body("2222")
    async with connected.run_test(size=(80, 24)) as pilot:
        screen = await chat_screen(pilot)
        line = screen.query_one(StatusLine)
        await until(pilot, lambda: line.cache == "KV 34% · 1,100 cached · host 12% · disk 12%")
        await pilot.press("ctrl+t")
        cache = await on_screen(pilot, CacheScreen)
        await until(pilot, lambda: "▓▓▓▓" in str(cache.query_one(PageMap).render()))
        fake.cache = body("0123")
        await until(pilot, lambda: "·░▓█" in str(cache.query_one(PageMap).render()))
        await pilot.press("ctrl+t")
        await on_screen(pilot, ChatScreen)


async def test_a_server_without_the_route_is_chatted_with_all_the_same(connected: ShardwiseApp) -> None:
    async with connected.run_test(size=(80, 24)) as pilot:
        screen = await chat_screen(pilot)
        await pilot.press("ctrl+t")
        await on_screen(pilot, CacheScreen)
        await pilot.press("escape")
        await on_screen(pilot, ChatScreen)
        assert screen.query_one(StatusLine).cache == ""


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b'{"engines":[]}', b'{"engines":[{"statistics":{"pages_total":"\\u001b"}}]}',
     b'{"engines":[{"statistics":{},"map":{"pages_per_cell":0,"device":"0"}}]}',
     b'{"engines":[{"statistics":{},"map":{"pages_per_cell":1,"device":"4"}}]}'],
)  # fmt: skip
def test_nonsense_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        read_cache(content)


def test_a_map_that_does_not_fit_shows_the_busiest_of_each_run() -> None:
    assert merged(CacheMap(2, bytes([0, 1, 2, 0, 3])), 10) == (bytes([0, 1, 2, 0, 3]), 2)
    assert merged(CacheMap(2, bytes([0, 1, 2, 0, 3])), 3) == (bytes([1, 2, 3]), 4)
    assert merged(CacheMap(2, b""), 3) == (b"", 2)


def test_words_leave_out_what_there_is_not() -> None:
    assert cache_words.status(CacheStatistics()) == ""
    assert cache_words.status(CacheStatistics(pages_total=10, pages_used=1)) == "KV 10%"
    assert "host   none" in cache_words.summary(CacheStatistics(pages_total=10))
