"""Microseconds per all-reduce, by implementation and size: `python -m tests.bench.collectives [--ranks 2]`.

One thread a rank, tensors in main memory, ranks in lockstep; medians and means over the calls of rank 0.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from backend.parallel.gloo_group import GlooGroup
from backend.parallel.group import Group
from backend.parallel.rendezvous import meet
from backend.parallel.shared_group import SharedGroup
from tests.fakes.ranks import running_ranks

SHAPES = ((1, 576), (16, 576), (512, 576), (1024, 512), (4096, 1024))
WARM_UP, ROUNDS, LEAST_ROUNDS = 20, 2000, 30


def measure(group: Group, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[float, float, float]:
    """Median, mean and the best tenth's limit, in microseconds."""
    x = torch.zeros(shape, dtype=dtype)
    times = []
    for _ in range(WARM_UP + max(LEAST_ROUNDS, min(ROUNDS, 4_000_000 // x.nbytes))):
        began = time.perf_counter()
        group.all_reduce(x)
        times.append((time.perf_counter() - began) * 1e6)
    times = times[WARM_UP:]
    return statistics.median(times), statistics.fmean(times), statistics.quantiles(times, n=10)[0]


def run(rank: int, size: int, folder: Path, dtype: str) -> list[Any]:
    torch.set_num_threads(1)
    meeting = meet(rank, size, folder, "bench", 60.0)
    lines = []
    for group in (SharedGroup(meeting, 60.0), GlooGroup(meeting, 60.0)):
        lines += [(group.name, shape, *measure(group, shape, getattr(torch, dtype))) for shape in SHAPES]
        group.close()
    meeting.close()
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args()
    print(f"{'over':14} {'shape':>14} {'median µs':>10} {'mean µs':>10} {'best tenth':>10}")
    with (
        tempfile.TemporaryDirectory() as folder,
        running_ranks(Path(folder) / "ranks", options.ranks, run, dtype=options.dtype) as ranks,
    ):
        for name, shape, *figures in ranks.result(0, 300.0):
            print(f"{name:14} {'x'.join(map(str, shape)):>14} " + " ".join(f"{figure:10.1f}" for figure in figures))


if __name__ == "__main__":
    main()
