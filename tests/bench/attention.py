"""Paged attention on the processor by KV format, in microseconds a layer: `python -m tests.bench.attention`.

Each layer has pages of its own and they take turns, so that K and V come from memory, as in a model of many layers.
Formats take turns, too. What a page holds does not matter to the time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

import torch
from torch import Tensor

from kvcache.attention.kernel import AttentionShape, GroupStep
from kvcache.attention.processor import ProcessorKernel
from kvcache.layout import Keeps, LayerCache, build_layout
from kvcache.page_memory import PageMemory
from quant.cpu.team import Team
from quant.kv_format import parse_kv_formats

HEADS, KV_HEADS, SIZE = 9, 3, 64


class Work:
    """A step over sequences of (positions in the cache, new tokens); the first `shared` positions are one's for all."""

    def __init__(
        self, team: Team, formats: str, page_tokens: int, layers: int, chunks: list[tuple[int, int]], shared: int
    ) -> None:
        stored, dtype, device = parse_kv_formats(formats), torch.bfloat16, torch.device("cpu")
        layout = build_layout(
            (LayerCache(Keeps.FULL, None, KV_HEADS, SIZE, SIZE),) * layers, 2, page_tokens, formats=stored
        )
        columns = -(-max(past + new for past, new in chunks) // page_tokens)
        tables = torch.randperm(columns * len(chunks)).view(len(chunks), columns).int()
        tables[:, : shared // page_tokens] = tables[0, : shared // page_tokens].clone()
        memory = PageMemory(layout, columns * len(chunks), dtype, device)
        for page in range(memory.pages):
            memory.page(page).fill_(37)
        self._layers = [memory.layers[layer] for layer in range(layers)]
        shape = AttentionShape(HEADS, KV_HEADS, SIZE, SIZE, page_tokens, None, dtype, device, formats=stored)
        self._kernel = ProcessorKernel(team)
        self._step = _step(chunks, tables, page_tokens)
        self._shape = shape
        tokens = sum(new for _, new in chunks)
        self._query, self._key, self._value = (torch.randn(tokens, n, SIZE).bfloat16() for n in (HEADS, 3, 3))

    def microseconds(self) -> tuple[float, float, float]:
        """Preparing the step, and writing and attending a layer."""
        began = time.perf_counter()
        prepared = self._kernel.prepare(self._step, self._shape)
        planned = time.perf_counter()
        for pages in self._layers:
            self._kernel.write(self._key, self._value, pages, prepared)
        written = time.perf_counter()
        for pages in self._layers:
            self._kernel.attend(self._query, pages, prepared, scaling=SIZE**-0.5)
        ended = time.perf_counter()
        count = len(self._layers)
        return (planned - began) * 1e6, (written - planned) / count * 1e6, (ended - written) / count * 1e6


def _step(chunks: list[tuple[int, int]], tables: Tensor, page_tokens: int) -> GroupStep:
    slots = [
        int(tables[row, position // page_tokens]) * page_tokens + position % page_tokens
        for row, (past, new) in enumerate(chunks)
        for position in range(past, past + new)
    ]
    return GroupStep(
        query_starts=torch.tensor([0, *(new for _, new in chunks)]).cumsum(0).int(),
        starts=torch.tensor([past for past, _ in chunks], dtype=torch.int32),
        tables=tables,
        first_pages=torch.zeros(len(chunks), dtype=torch.int32),
        slots=torch.tensor(slots, dtype=torch.int64),
        max_query=max(new for _, new in chunks),
        max_length=max(past + new for past, new in chunks),
    )


def main() -> int:
    options = _options()
    torch.set_num_threads(options.threads)
    team = Team(options.threads)
    cases = {
        f"decode, {options.sequences} sequences of {options.context}": ([(options.context, 1)] * options.sequences, 0),
        f"decode, 1 sequence of {options.context}": ([(options.context, 1)], 0),
        f"decode, {options.sequences} sequences sharing 1,024": ([(1088, 1)] * options.sequences, 1024),
        "prefill, 512 tokens over 2,048": ([(2048, 512)], 0),
    }
    names = options.formats.split("/")
    for title, (chunks, shared) in cases.items():
        if options.only and not title.startswith(options.only):
            continue
        works = {name: Work(team, name, options.page, options.layers, chunks, shared) for name in names}
        times: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}
        for _ in range(options.rounds + 1):
            for name, work in works.items():
                times[name].append(work.microseconds())
        print(f"{title}; {options.layers} layers, pages of {options.page}, {options.threads} threads")
        base = None
        for name in names:
            prepare, write, attend = (statistics.median(column) for column in zip(*times[name][1:], strict=True))
            base = base or attend
            print(f"  {name:<14} prepare {prepare:6.0f} us   write {write:7.1f}   attend {attend:8.1f} us a layer "
                  f" {base / attend:5.2f}x {names[0]}")  # fmt: skip
    team.close()
    return 0


def _options() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--context", type=int, default=4000)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--page", type=int, default=16, help="positions a page")
    parser.add_argument("--formats", default="model/int8/fp8", help="separated by /, the first is the base")
    parser.add_argument("--only", default="", help="cases whose name begins so")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
