"""Kills and stops each rank of a running server in mid-stream, many times: every stream must end with the right tokens.

python -m tests.faults.rank_faults                          SIGKILL and SIGSTOP, each rank, 20 times each
python -m tests.faults.rank_faults --times 3 --ranks 3
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import psutil

from tests.end_to_end.answers import client_of
from tests.end_to_end.prompts import PROMPTS
from tests.fakes.processes import RunningServer, running_server

STREAMS = 4
# Seconds until a server whose rank was killed must serve again.
READY_SECONDS = 120.0


@dataclass
class Clock:
    """When a stream's last token came, over all streams."""

    last: float = 0.0
    tokens: int = 0

    async def reaches(self, tokens: int) -> None:
        while self.tokens < tokens:  # noqa: ASYNC110 - a token is not worth an event
            await asyncio.sleep(0.005)


@dataclass
class Outcome:
    """What happened to one kind of fault on one rank."""

    seconds: list[float] = field(default_factory=list)
    wrong: int = 0
    orphans: int = 0


async def stream(client: openai.AsyncOpenAI, prompt: str, tokens: int, clock: Clock) -> str:
    """A chat's greedy answer."""
    pieces: list[str] = []
    answer = await client.chat.completions.create(
        model="starter", messages=[{"role": "user", "content": prompt}], temperature=0, max_completion_tokens=tokens,
        stream=True, extra_body={"ignore_eos": True},
    )  # fmt: skip
    async for chunk in answer:
        if chunk.choices:
            pieces.append(chunk.choices[0].delta.content or "")
            clock.last, clock.tokens = time.monotonic(), clock.tokens + 1
    return "".join(pieces)


async def fault(
    server: RunningServer, number: signal.Signals, rank: int, expected: list[str], options: Any, choose: random.Random
) -> tuple[float, int, int]:
    """One fault: seconds without any token, wrong answers, and processes left behind."""
    async with client_of(server) as client:
        clock = Clock()
        tasks = [asyncio.create_task(stream(client, prompt, options.tokens, clock)) for prompt in PROMPTS[:STREAMS]]
        wanted = choose.randrange(STREAMS, STREAMS * options.tokens // 2)
        await clock.reaches(wanted)
        victims = await asyncio.to_thread(server.ranks)
        os.kill(victims[rank]["pid"], number)
        struck, before = time.monotonic(), clock.tokens
        # What was on its way when it happened still comes; the first token after a pause ends the recovery.
        recovered = struck
        while not all(task.done() for task in tasks):
            seen, last = clock.tokens, clock.last
            await asyncio.sleep(0.005)
            if clock.tokens > seen and clock.last - max(last, struck) > 1.0:
                recovered = clock.last
        given = await asyncio.gather(*tasks)
    left = sum(psutil.pid_exists(victim["pid"]) for victim in victims)
    wrong = sum(one != other for one, other in zip(given, expected, strict=True))
    if recovered == struck and clock.tokens > before:
        print("  the streams ended before the fault struck", flush=True)
    return recovered - struck, wrong, left


async def run(server: RunningServer, options: Any) -> dict[tuple[str, int], Outcome]:
    async with client_of(server) as client:
        expected = [await stream(client, prompt, options.tokens, Clock()) for prompt in PROMPTS[:STREAMS]]
    choose, outcomes = random.Random(options.seed), dict[tuple[str, int], Outcome]()
    for number in (signal.SIGKILL, signal.SIGSTOP):
        for rank in range(options.ranks):
            outcome = outcomes[number.name, rank] = Outcome()
            for turn in range(options.times):
                seconds, wrong, left = await fault(server, number, rank, expected, options, choose)
                outcome.seconds.append(seconds)
                outcome.wrong += wrong
                outcome.orphans += left
                print(f"{number.name} rank {rank}, {turn + 1}: {seconds:.1f} s, {wrong} wrong, {left} left", flush=True)
                await asyncio.to_thread(server.await_health, 200, READY_SECONDS)
    return outcomes


def main() -> int:
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        flags = ("--dtype", "float32", "--kv-pool", "512MiB", "--tp", str(options.ranks))
        with running_server(Path(folder), *flags) as server:
            outcomes = asyncio.run(run(server, options))
            children = server.children()
        left = [child for child in children if child.is_running()]
    print(f"\n{'fault':<10} {'rank':>4} {'times':>5} {'median s':>9} {'most s':>7} {'wrong':>6} {'left':>5}")
    for (name, rank), one in outcomes.items():
        median, most = statistics.median(one.seconds), max(one.seconds)
        print(f"{name:<10} {rank:>4} {len(one.seconds):>5} {median:>9.1f} {most:>7.1f} {one.wrong:>6} {one.orphans:>5}")
    print(f"{len(left)} processes outlived their server")
    return 1 if left or any(one.wrong or one.orphans or min(one.seconds) == 0 for one in outcomes.values()) else 0


def _options() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=96, help="tokens of each of the four streams")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
