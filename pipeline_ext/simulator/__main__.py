"""`python -m pipeline_ext.simulator`: runs seeds, and says which fail and how to run them again."""

from __future__ import annotations

import argparse
import gc
import sys
import time
import traceback

from pipeline_ext.simulator.scenario import make_scenario
from pipeline_ext.simulator.seed_run import SeedRun
from pipeline_ext.simulator.simulated_worker import MakeMachine
from pipeline_ext.stage_machine import StageMachine


def replay_command(seed: int) -> str:
    """What to type to see this seed again."""
    return f"python -m pipeline_ext.simulator --seed {seed} --verbose"


def run_seed(seed: int, make_machine: MakeMachine = StageMachine, *, verbose: bool = False) -> str | None:
    """What is wrong with this seed, with the command that replays it; None where all holds."""
    run = SeedRun(make_scenario(seed), make_machine)
    if verbose:
        print(run.scenario)
    try:
        run.run()
    except Exception as error:  # noqa: BLE001 - a seed that fails in whatever way is to be told of
        if verbose:
            print("\n".join(run.log))
            traceback.print_exc()
        return f"seed {seed}: {type(error).__name__}: {error}\n  {replay_command(seed)}"
    if verbose:
        print("\n".join(run.log))
        print(f"engines {run.engines}, given up {run.given_up}, tokens {run.told}")
    return None


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipeline_ext.simulator", description=__doc__)
    parser.add_argument("--seed", type=int, help="one seed")
    parser.add_argument("--seeds", help="a range of seeds, as FIRST..LAST")
    parser.add_argument("--verbose", action="store_true", help="say what happens when")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        first = last = options.seed
    else:
        first, last = (int(one) for one in (options.seeds or "0..1999").split(".."))
    began, failed = time.monotonic(), 0
    # What was imported is no garbage, and looking through it takes longer than a seed.
    gc.collect()
    gc.freeze()
    for seed in range(first, last + 1):
        complaint = run_seed(seed, verbose=options.verbose)
        if complaint is not None:
            failed += 1
            print(complaint, flush=True)
    print(f"{last - first + 1 - failed} passed, {failed} failed in {time.monotonic() - began:.1f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
