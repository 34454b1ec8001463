"""Latest: the newest request is answered, those in between are dropped, one is worked on at a time."""

from __future__ import annotations

import asyncio

from app.tui.latest import Latest


async def test_requests_that_come_while_one_is_worked_on_are_dropped_but_the_newest() -> None:
    begun, gate = asyncio.Event(), asyncio.Event()
    seen: list[tuple[int, bool]] = []
    tasks: list[asyncio.Task[None]] = []

    async def work(number: int) -> None:
        begun.set()
        await gate.wait()
        seen.append((number, latest.overtaken))

    latest: Latest[int] = Latest(lambda: tasks.append(asyncio.ensure_future(latest.run())), work)
    assert latest.idle
    latest.ask(1)
    await begun.wait()
    for number in (2, 3, 4):
        latest.ask(number)
    assert not latest.idle
    gate.set()
    await asyncio.gather(*tasks)
    assert seen == [(1, True), (4, False)]
    assert len(tasks) == 1
    assert latest.idle


async def test_it_starts_again_after_it_has_been_idle() -> None:
    seen: list[int] = []
    tasks: list[asyncio.Task[None]] = []

    async def work(number: int) -> None:
        seen.append(number)

    latest: Latest[int] = Latest(lambda: tasks.append(asyncio.ensure_future(latest.run())), work)
    for number in (1, 2):
        latest.ask(number)
        await asyncio.gather(*tasks)
    assert seen == [1, 2]
    assert len(tasks) == 2
