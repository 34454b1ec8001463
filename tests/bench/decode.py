"""Decode steps of many sequences with a long context, by KV format, in one run: `python -m tests.bench.decode`.

One prompt is computed; its pages are then copied for the other sequences, since what they hold does not matter to the
time, and that they are different pages does. Formats take turns, so that a change of the machine's speed meets all.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

import torch

from backend.batch import Batch, PageSpan, SampleTask, Slice
from backend.library.resolve import resolve
from backend.request import Sampling
from backend.runner import Runner
from backend.surgery.load import load_model
from backend.surgery.model import ServedModel
from backend.surgery.pack import pack_model
from kvcache.layout import build_layout
from quant.cpu.team import Team
from quant.kv_format import parse_kv_formats
from quant.weight_format import WEIGHT_FORMATS

CHUNK = 512


class Decoding:
    """Sequences of one format that all stand at the same position."""

    def __init__(self, model: ServedModel, team: Team, formats: str, sequences: int, context: int) -> None:
        self._layout = build_layout(model.facts.layers, model.dtype.itemsize, formats=parse_kv_formats(formats))
        self._context = context
        # Room for the tokens that are decoded.
        self._columns = -(-(context + CHUNK) // self._layout.groups[0].page_tokens)
        self._runner = Runner(model, self._layout, self._columns * sequences, team)
        self._sequences = sequences
        self._step = 0
        tokens = [(31 * position) % 4096 + 100 for position in range(context)]
        for start in range(0, context, CHUNK):
            self._runner.execute(Batch(0, (self._slice(0, start, tokens[start : start + CHUNK]),)))
        memory = self._runner.memory
        for page in range(self._columns, self._columns * sequences):
            memory.page(page).copy_(memory.page(page % self._columns))

    @property
    def bytes_per_token(self) -> int:
        return self._layout.bytes_per_token

    def decode(self) -> float:
        """Seconds of one step that decodes a token of each sequence."""
        batch = Batch(1, tuple(self._slice(one, self._context, [17]) for one in range(self._sequences)))
        began = time.perf_counter()
        self._runner.execute(batch)
        return time.perf_counter() - began

    def _slice(self, sequence: int, start: int, tokens: list[int]) -> Slice:
        span = PageSpan(0, range(sequence * self._columns, (sequence + 1) * self._columns))
        end = start + len(tokens)
        task = SampleTask(Sampling(), (1,), ())
        return Slice(sequence, start, tokens, end, end, (span,) * len(self._layout.groups), task)


def main() -> int:
    options = _options()
    torch.set_num_threads(options.threads)
    team = Team(options.threads)
    model = load_model(
        resolve("starter"), dtype=torch.bfloat16, device=torch.device("cpu"), on_progress=lambda done, total: None
    )
    model = pack_model(model, WEIGHT_FORMATS["model"], team)
    names = options.formats.split("/")
    kinds = {name: Decoding(model, team, name, options.sequences, options.context) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name, kind in kinds.items():
            kind.decode()
            seconds[name] += [kind.decode() for _ in range(5)]
    print(f"{options.sequences} sequences of {options.context} positions, bfloat16, {options.threads} threads")
    base = statistics.median(seconds[names[0]])
    for name, kind in kinds.items():
        step = statistics.median(seconds[name])
        rate = options.sequences / step
        print(f"{name:<14} {kind.bytes_per_token:>7,} B a token  {step * 1e3:7.1f} ms a step  {rate:7.1f} tok/s  "
              f"{base / step:5.2f}x {names[0]}")  # fmt: skip
    team.close()
    return 0


def _options() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--context", type=int, default=4000)
    parser.add_argument("--formats", default="model/int8/fp8", help="separated by /, the first is the base")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
