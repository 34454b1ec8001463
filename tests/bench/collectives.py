"""Microseconds per all-reduce, by implementation and size: `python -m tests.bench.collectives [--ranks 2]`.

One thread a rank, ranks in lockstep; median, mean and the best tenth's limit over the calls of rank 0. With `--device
cuda` each rank takes a GPU of its own, or all the same one where there are fewer. `--pin` gives each rank a core: a
busy machine may else put two on one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from backend.parallel.group import Group
from backend.parallel.open_group import MEANS
from backend.parallel.rendezvous import meet
from tests.fakes.ranks import running_ranks

SHAPES = ((1, 576), (16, 576), (512, 576), (1024, 512), (4096, 1024))
WARM_UP, ROUNDS, LEAST_ROUNDS = 20, 2000, 30


def measure(group: Group, x: torch.Tensor) -> list[float]:
    """Median, mean and the best tenth's limit, in microseconds."""
    times = []
    for _ in range(WARM_UP + max(LEAST_ROUNDS, min(ROUNDS, 4_000_000 // x.nbytes))):
        began = time.perf_counter()
        group.all_reduce(x)
        if x.is_cuda:
            torch.cuda.synchronize()
        times.append((time.perf_counter() - began) * 1e6)
    times = times[WARM_UP:]
    return [statistics.median(times), statistics.fmean(times), statistics.quantiles(times, n=10)[0]]


def run(rank: int, size: int, folder: Path, dtype: str, device: str, over: list[str], pin: bool) -> list[Any]:
    torch.set_num_threads(1)
    if pin:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[rank % len(cores)]})
    place = torch.device("cpu" if device == "cpu" else f"cuda:{rank % torch.cuda.device_count()}")
    meeting = meet(rank, size, folder, "bench", 60.0)
    lines = []
    for name, make in MEANS[device].items():
        if over and name not in over:
            continue
        group = make(meeting, place, 60.0)
        for shape in SHAPES:
            x = torch.zeros(shape, dtype=getattr(torch, dtype), device=place)
            serves = getattr(group, "serves", None)
            if serves is None or serves(x):
                lines.append((name, shape, *measure(group, x)))
        group.close()
    meeting.close()
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu", choices=list(MEANS))
    parser.add_argument("--over", nargs="*", default=[], help="only these; those that cannot work here fail")
    parser.add_argument("--pin", action="store_true")
    options = vars(parser.parse_args())
    size = options.pop("ranks")
    print(f"{'over':10} {'shape':>10} {'median µs':>10} {'mean µs':>10} {'best tenth':>10}")
    with (
        tempfile.TemporaryDirectory() as folder,
        running_ranks(Path(folder) / "ranks", size, run, **options) as ranks,
    ):
        for name, shape, *figures in ranks.result(0, 300.0):
            print(f"{name:10} {'x'.join(map(str, shape)):>10} " + " ".join(f"{figure:10.1f}" for figure in figures))


if __name__ == "__main__":
    main()
