"""A process that stores and loads pages until it is killed or its input ends; without torch, so it starts at once.

    python -m tests.kvcache.tiers.storing FOLDER SEED

Prints `writer` or `reader` whenever it becomes one, and ends with status 1 if it was ever given a wrong page.
"""

from __future__ import annotations

import random
import select
import sys
from itertools import count
from pathlib import Path

from kvcache.tiers.record import Miss, PageShape
from tests.kvcache.tiers.disk_pages import key, load, make, page

# Large enough for a kill to meet a write often, and a budget that makes it evict.
BIG = PageShape(4, 50_000, 200_100)
NUMBERS = 40
BUDGET = 25 * BIG.record_bytes


def main(folder: Path, seed: int) -> int:
    choose, told = random.Random(seed), ""
    ticks = count(0, 10)
    tier = make(folder, BUDGET, shape=BIG, clock=lambda: float(next(ticks)))
    while not select.select([sys.stdin], [], [], 0)[0]:
        role = "writer" if tier.writable else "reader"
        if role != told:
            print(role, flush=True)
            told = role
        number = choose.randrange(NUMBERS)
        loaded = load(tier, number, BIG)
        if not isinstance(loaded, Miss):
            if loaded != page(number, BIG):
                return 1
        elif tier.writable:
            tier.store(key(number), memoryview(page(number, BIG)))
        tier.tend()
    tier.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
