"""Decode speed of two stages against one process, without a server: `python -m tests.bench.stages --sequences 1,16,64`.

All processes have one thread. In one run, in turn: one process, two stages, and with --delay two stages whose second is
that many milliseconds away (its link, its orders and its answers). Of the stages it prints the times at half batches as
measured, the bound that follows of these, and the share of it that was reached:

    bound = sequences / max( sum of stage times + delays, batches x slowest stage )     for the best count of batches
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from backend.compose_engine import ComposedEngine, compose_engine
from backend.engine_environment import engine_environment
from backend.engine_settings import EngineSettings
from backend.hardware.machine import read_machine
from backend.hardware.peer_probe import probed
from backend.library.resolve import resolve
from pipeline_ext.compose_stages import Ground, compose_on, open_ground, planned_on
from pipeline_ext.depth import DepthMeter, best_depth, period
from pipeline_ext.door import Door
from pipeline_ext.messages import Join, ToStage
from pipeline_ext.pipeline_limits import PipelineLimits
from pipeline_ext.process_cluster import ProcessCluster
from pipeline_ext.socket_transport import SocketTransport
from tests.bench.delay_relay import DelayRelay
from tests.bench.ranks import rate

FAR = "far"
MOST_BATCHES = 8


def settings_of(options: Any, stages: int) -> EngineSettings:
    return EngineSettings(
        files=resolve(options.model), device="cpu", dtype=options.dtype, threads=stages, kv_pool=1 << 30,
        pipeline_stages=stages, stage_layers=options.layers if stages > 1 else (),
    )  # fmt: skip


class FarDoor:
    """A Door that one machine reaches by a relay."""

    def __init__(self, door: Door, relay: DelayRelay) -> None:
        self._door, self._relay = door, relay

    def __getattr__(self, name: str) -> Any:
        return getattr(self._door, name)

    def place(self, peer: str) -> str:
        return self._relay.place if peer == FAR else self._door.place(peer)


class FarTransport(SocketTransport):
    """Sends links by relays."""

    def __init__(self, door: Door, seconds: float) -> None:
        super().__init__(door)
        self._seconds = seconds
        self._folder = Path(door.unix).parent

    def send(self, worker: str, message: ToStage) -> None:
        if isinstance(message, Join) and message.forward:
            relay = DelayRelay(self._folder / f"relay-{message.epoch}.sock", message.forward, self._seconds)
            message = Join(message.epoch, relay.place)
        super().send(worker, message)


def compose_two(options: Any, delay: float) -> ComposedEngine:
    settings = settings_of(options, 2)
    cluster = ProcessCluster(lambda: probed(read_machine()), guests=(FAR,))
    cluster.keep_warm(2)
    ground: Ground = open_ground(cluster, cluster)
    if delay:
        ground.transport.close()
        ground = open_ground(cluster, cluster)
        relay = DelayRelay(Path(ground.door.unix).with_name("relay-door.sock"), ground.door.unix, delay)
        ground.transport = FarTransport(ground.door, delay)
        ground.door = FarDoor(ground.door, relay)  # pyright: ignore[reportAttributeAccessIssue]
    return compose_on(settings, _quiet, ground, planned_on(settings, ground, _quiet), PipelineLimits())


def meter_of(composed: ComposedEngine) -> DepthMeter:
    return composed.engine._executor._meter  # pyright: ignore


def measured(composed: ComposedEngine, sequences: int, options: Any) -> list[float]:
    rate(composed, sequences, 1000)  # warms up
    return [rate(composed, sequences, run) for run in range(options.runs)]


def main() -> int:
    options = _options()
    os.environ.update(engine_environment(settings_of(options, 1), os.environ))
    delays = [0.0, *([options.delay / 1000] if options.delay else [])]
    rates: dict[tuple[str, int], list[float]] = {}
    for _ in range(options.turns):
        one = compose_engine(settings_of(options, 1), _quiet)
        for sequences in options.sequences:
            rates.setdefault(("one process", sequences), []).extend(measured(one, sequences, options))
        one.engine.close()
        for delay in delays:
            two = compose_two(options, delay)
            name = f"two stages, {delay * 1000:.0f} ms" if delay else "two stages"
            for sequences in options.sequences:
                rates.setdefault((name, sequences), []).extend(measured(two, sequences, options))
                _tell(name, sequences, meter_of(two), delay, statistics.median(rates[name, sequences]))
            two.engine.close()
    for (name, sequences), values in rates.items():
        median, first = statistics.median(values), statistics.median(rates["one process", sequences])
        print(f"{name:<20} {sequences:3d} at once {median:8.1f} tok/s ({min(values):.1f}-{max(values):.1f}), "
              f"{median / first:.2f} of one process")  # fmt: skip
    return 0


def _tell(name: str, sequences: int, meter: DepthMeter, delay: float, reached: float) -> None:
    """The bound of what the stages took, and how much of it was reached."""
    stages = meter.stages
    batches = best_depth(stages, 2 * delay, sequences, MOST_BATCHES)
    bound = sequences / period(stages, 2 * delay, sequences, batches)
    half = max(1, sequences // 2)
    times = ", ".join(f"{stage.seconds(half) * 1000:.2f}" for stage in stages)
    print(f"{name}, {sequences} at once: stages take {times} ms for {half}; bound {bound:.1f} tok/s with {batches} "
          f"batches of {sequences / batches:.1f}, reached {reached:.1f} ({reached / bound:.0%}); "
          f"delays measured {meter.delays * 1000:.2f} ms, depth {meter.depth(sequences)}", flush=True)  # fmt: skip


def _quiet(stage: str, done: int, total: int) -> None:
    pass


def _counts(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _options() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=_counts, default=(1, 16), help="comma-separated counts of answers at once")
    parser.add_argument("--delay", type=float, default=0.0, help="milliseconds to the second stage, one way")
    parser.add_argument("--layers", type=_counts, default=(15, 15), help="of each stage")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--dtype", default="bfloat16")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
