"""Runs a range of seeds, and names those that fail with the command that replays them."""

from __future__ import annotations

import gc

from pipeline_ext.simulator.__main__ import run_seed


def failures(seeds: range) -> list[str]:
    # What was imported is no garbage, and looking through it takes longer than a seed.
    gc.collect()
    gc.freeze()
    try:
        return [complaint for seed in seeds if (complaint := run_seed(seed)) is not None]
    finally:
        gc.unfreeze()
