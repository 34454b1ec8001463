"""Time to first token of a long chat, cold and after a restart from disk: `python -m tests.bench.restart`."""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from tests.fakes.processes import running_server
from tests.faults.cache_state import cache_statistics, settled


def main() -> int:
    options = _options()
    colds: list[float] = []
    warms: list[float] = []
    for turn in range(options.runs):
        prompt = [random.Random(f"{turn}-{position}").randrange(100, 40000) for position in range(options.tokens)]
        with tempfile.TemporaryDirectory() as folder:
            server = ("--dtype", options.dtype, "--disk-cache", "4GiB", "--cache-dir", f"{folder}/pages")
            with running_server(Path(folder), *server) as running:
                _first_token(running.url, prompt[:64])
                colds.append(_first_token(running.url, prompt))
                records = settled(running.url)
            with running_server(Path(folder), *server) as running:
                _first_token(running.url, prompt[-64:])
                warms.append(_first_token(running.url, prompt))
                fetched = cache_statistics(running.url)["disk_fetched_pages"]
        print(f"run {turn + 1}: cold {colds[-1] * 1e3:,.0f} ms, after a restart {warms[-1] * 1e3:,.0f} ms "
              f"({records} records written, {fetched} fetched)", flush=True)  # fmt: skip
    cold, warm = statistics.median(colds), statistics.median(warms)
    print(f"{options.tokens} tokens, {options.dtype}: {warm / cold:.1%} of a cold prefill")
    return 0


def _first_token(url: str, prompt: list[int]) -> float:
    """Seconds from sending the request to its first token."""
    body = {"model": "starter", "prompt": prompt, "max_tokens": 4, "temperature": 0, "stream": True, "ignore_eos": True}
    began = time.perf_counter()
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=600) as stream:
        lines = stream.iter_lines()
        next(line for line in lines if line.startswith("data: "))
        seconds = time.perf_counter() - began
        for _ in lines:
            pass
    return seconds


def _options() -> Any:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=8000)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--runs", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
