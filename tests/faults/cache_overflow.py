"""Overflows the page pool several times over with returning chats, and compares each answer with an unlimited pool's.

    python -m tests.faults.cache_overflow            all of it, some minutes
    python -m tests.faults.cache_overflow --chats 6  less of it

Fails where an answer differs in float32, or where the run offloaded, fetched or read nothing from disk: then it has not
tested the tiers. The same load with INT8 pages reports its share of equal answers.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backend.planner.prepare import PAGE_TOKENS
from tests.fakes.processes import running_server
from tests.faults.cache_state import cache_statistics, conserved
from tests.faults.chat_load import ChatLoad, Turn

LEAST_OVERFLOW = 4
TIERS = ("offloaded_pages", "host_fetched_pages", "stored_pages", "disk_fetched_pages", "disk_hit_tokens")
SHOWN = (*TIERS, "lookup_tokens", "hit_tokens", "host_hit_tokens", "evictions", "host_evictions", "disk_evictions",
         "declined_fetches", "failed_transfers", "rejected_records")  # fmt: skip


def main() -> int:
    options = _options()
    load = ChatLoad(options.chats, options.turns, options.words, options.answer, options.seed)
    expected, _ = _run(load, options, None, "--dtype", "float32", "--kv-pool", "2GiB", "--host-cache", "0")
    small = ("--dtype", "float32", "--kv-pool", options.pool, "--host-cache", options.pool, "--disk-cache", "1GiB")
    given, statistics = _run(load, options, expected, *small)
    pool = statistics["pages_total"] * PAGE_TOKENS
    size = f"chats of {load.tokens:,} tokens, {load.tokens / pool:.1f} times the pool's {pool:,}"
    print(f"float32: {_share(given, expected)} of answers equal; {size}")
    for name in SHOWN:
        print(f"  {name:<20} {statistics[name]:>12,}")
    unused = [name for name in TIERS if not statistics[name]]
    quantized, _ = _run(load, options, expected, *small, "--kv-format", "int8")
    print(f"int8:    {_share(quantized, expected)} of answers equal")
    wrong = [turn for turn in expected if given[turn] != expected[turn]]
    for turn in wrong:
        print(f"FAILED: chat {turn[0]}, turn {turn[1]}, time {turn[2]}: {given[turn]!r} instead of {expected[turn]!r}")
    for name in unused:
        print(f"FAILED: {name} is 0: this run has not tested it")
    if load.tokens < LEAST_OVERFLOW * pool:
        print(f"FAILED: the chats are less than {LEAST_OVERFLOW} times the pool")
    if not conserved(statistics):
        print(f"FAILED: pages are not conserved: {statistics}")
    return 1 if wrong or unused or load.tokens < LEAST_OVERFLOW * pool or not conserved(statistics) else 0


def _run(
    load: ChatLoad, options: Any, history: Mapping[Turn, str] | None, *server: str
) -> tuple[Mapping[Turn, str], dict[str, Any]]:
    """The load's answers by a server with these options, going on from these, and what its cache then tells."""
    print("== shardwise serve starter", *server, file=sys.stderr, flush=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server(Path(folder), *server, "--cache-dir", f"{folder}/pages") as running,
    ):
        answers = asyncio.run(
            load.run(
                running.url, concurrency=options.concurrency, again=options.again, pause=options.pause, history=history
            )
        )
        return answers, cache_statistics(running.url)


def _share(given: Mapping[Turn, str], expected: Mapping[Turn, str]) -> str:
    equal = sum(given[turn] == answer for turn, answer in expected.items())
    return f"{equal} of {len(expected)}"


def _options() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chats", type=int, default=20)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--words", type=int, default=550, help="words of each chat's opening")
    parser.add_argument("--answer", type=int, default=32, help="most tokens of an answer")
    parser.add_argument("--pool", default="200MiB", help="size of the pool, and of the host tier")
    parser.add_argument("--concurrency", type=int, default=6)
    parser.add_argument("--again", type=int, default=7, help="chats after which an answer is asked for again")
    parser.add_argument("--pause", type=float, default=4.0, help="seconds without requests between rounds")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
