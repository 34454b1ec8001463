"""What this machine gives, for reading the other figures: `python -m tests.bench.bounds [--threads 2]`.

Prints the rate of torch's own bf16 product at 512 rows (the bound of a prefill), the rate at which our packed product
streams 256 MiB of weights at one row (close to the bound of a decode), and from these the least time of a 2,048-token
prefill and of one decode step of the starter model's linears.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch.nn import functional

from quant.cpu.linear import PackedLinear
from quant.cpu.team import Team

# The starter's linears without the output layer, and with it: parameters.
BODY, WHOLE = 106_168_320, 134_479_872
ROUNDS = 9


def best(run: Callable[[], object]) -> float:
    """Seconds of the fastest of some rounds."""
    run()
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def product_rate() -> float:
    """FLOP/s of torch's bf16 product, 512 x 4096 x 4096."""
    x, weight = torch.randn(512, 4096).bfloat16(), torch.randn(4096, 4096).bfloat16()
    return 2 * 512 * 4096 * 4096 / best(lambda: functional.linear(x, weight))


def stream_rate(team: Team) -> float:
    """Bytes/s of weights that our product reads at one row, over 256 MiB."""
    linears = [PackedLinear(torch.zeros(4096, 4096).bfloat16(), None, team) for _ in range(8)]
    x = torch.zeros(1, 4096).bfloat16()
    return sum(linear.packed.nbytes for linear in linears) / best(lambda: [linear(x) for linear in linears])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    team = Team(threads)
    product, stream = product_rate(), stream_rate(team)
    team.close()
    print(f"bf16 product, 512 rows (torch)     {product / 1e9:8.0f} GFLOP/s")
    print(f"weights streamed at one row (ours) {stream / 1e9:8.1f} GB/s")
    print(f"2,048-token prefill, linears only  {2 * BODY * 2048 / product:8.2f} s at least")
    print(f"one decode step, weights only      {2 * WHOLE / stream * 1e3:8.1f} ms at least")


if __name__ == "__main__":
    main()
