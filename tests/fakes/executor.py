"""PagedExecutor: a model of the cache. It keeps in pages what K and V would hold, and answers with a hash of it.

Each token leaves one value per cache group, made of the token, its position, the lengths that RoPE variants choose by,
and what the token saw in the groups before. So a page that is lost, stale, shared by mistake or released too early, a
position skipped, or a missing recomputation changes the answer, which `alone` gives without any pages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Protocol

from backend.batch import Batch, Sampled, Slice
from backend.ending import answer_end
from backend.measured_rank import MeasuredRank
from backend.one_batch import OneBatch
from backend.request import Request
from kvcache.layout import CacheLayout, oldest_seen
from kvcache.transfer import TransferDone
from tests.fakes.tiers import FakeTiers

VOCABULARY = 97


class Memory(Protocol):
    def write(self, group: int, position: int, value: int) -> None: ...

    def read(self, group: int, position: int) -> int: ...


class PlainMemory:
    """One sequence's values without pages."""

    def __init__(self) -> None:
        self._values: dict[tuple[int, int], int] = {}

    def write(self, group: int, position: int, value: int) -> None:
        self._values[group, position] = value

    def read(self, group: int, position: int) -> int:
        return self._values[group, position]


class PagedMemory:
    """One slice's view of the pool, through its spans only."""

    def __init__(self, layout: CacheLayout, pool: list[dict[int, tuple[int, int]]], part: Slice) -> None:
        self._page_tokens = [group.page_tokens for group in layout.groups]
        self._pool = pool
        self._part = part

    def _page(self, group: int, position: int) -> dict[int, tuple[int, int]]:
        span = self._part.spans[group]
        index = position // self._page_tokens[group] - span.first
        if not 0 <= index < len(span.ids):
            raise LookupError(f"position {position} has no page in group {group}")
        return self._pool[span.ids[index]]

    def write(self, group: int, position: int, value: int) -> None:
        self._page(group, position)[position % self._page_tokens[group]] = (group, value)

    def read(self, group: int, position: int) -> int:
        owner, value = self._page(group, position)[position % self._page_tokens[group]]
        if owner != group:
            raise LookupError(f"a page of group {owner} is read by group {group}")
        return value


class TinyModel:
    """Turns tokens into values in a Memory, and the values into the next token."""

    def __init__(self, layout: CacheLayout, recompute_lengths: tuple[int, ...], scaled_past: int | None) -> None:
        """recompute_lengths, scaled_past: as in `rope_class`."""
        self._groups = layout.groups
        self._recompute_lengths = recompute_lengths
        self._scaled_past = scaled_past

    def forward(self, part: Slice, memory: Memory) -> int:
        """Computes the slice's tokens: the next token."""
        for position, token in enumerate(part.tokens, part.start):
            self.layers(memory, position, self.embedded(part, position, token))
        return self.everything(part, memory) % VOCABULARY

    def embedded(self, part: Slice, position: int, token: int) -> int:
        regime = sum(part.length > one for one in self._recompute_lengths)
        return hash((token, position, regime, self._scale(part, position)))

    def layers(self, memory: Memory, position: int, hidden: int) -> int:
        """What becomes of one token's value, which leaves its traces in the memory."""
        for group in range(len(self._groups)):
            memory.write(group, position, hidden)
            # A few places of what it may see, to stay fast; always the same ones, as in a real model.
            oldest = self._oldest_seen(group, position)
            places = (oldest, (oldest + position) // 2, position)
            hidden = hash((hidden, *[memory.read(group, one) for one in places]))
        return hidden

    def everything(self, part: Slice, memory: Memory) -> int:
        """A hash of all that the slice's newest token sees."""
        newest = part.start + len(part.tokens) - 1
        everything = [
            memory.read(group, one)
            for group in range(len(self._groups))
            for one in range(self._oldest_seen(group, newest), newest + 1)
        ]
        return hash(tuple(everything))

    def _scale(self, part: Slice, position: int) -> int:
        if self._scaled_past is None:
            return 0
        return max(self._scaled_past, part.prompt_length, position + 1)

    def _oldest_seen(self, group: int, position: int) -> int:
        return oldest_seen(position, self._groups[group].window, self._groups[group].chunked)


class PagedExecutor(OneBatch):
    """An Executor over TinyModel and paged memory. Impossible accesses are kept in `faults`.

    `refuse` is asked before each batch and may raise, as a device would.
    """

    def __init__(
        self,
        layout: CacheLayout,
        pages: int,
        recompute_lengths: tuple[int, ...] = (),
        refuse: Callable[[Batch], None] = lambda batch: None,
        scaled_past: int | None = None,
        tiers: FakeTiers | None = None,
    ) -> None:
        self._layout = layout
        self._pool: list[dict[int, tuple[int, int]]] = [{} for _ in range(pages)]
        self._model = TinyModel(layout, recompute_lengths, scaled_past)
        self._refuse = refuse
        self._tiers = tiers
        self.batches: list[Batch] = []
        self.faults: list[str] = []
        self.patience = 0.0  # asked for so far

    def execute(self, batch: Batch) -> list[Sampled | None]:
        self.batches.append(batch)
        if batch.transfers:
            if self._tiers is None:
                raise ValueError("transfers were ordered without tiers")
            self._tiers.begin(batch.transfers, self._pool)
        self._refuse(batch)
        self.faults += check_disjoint(batch, self._layout)
        results: list[Sampled | None] = []
        for part in batch.slices:
            if not part.tokens:
                self.faults.append(f"sequence {part.sequence}: a slice without tokens")
            try:
                token = self._model.forward(part, PagedMemory(self._layout, self._pool, part))
            except (LookupError, IndexError) as fault:
                self.faults.append(f"sequence {part.sequence}: {fault!r}")
                token = 0
            results.append(None if part.sample is None else Sampled(token))
        return results

    def transfers_done(self, patience: float = 0.0) -> list[TransferDone]:
        self.patience += patience
        return [] if self._tiers is None else self._tiers.done(self._pool, patience)

    def measure(self) -> tuple[MeasuredRank, ...]:
        return ()

    def close(self) -> None:
        self._pool.clear()


def check_disjoint(batch: Batch, layout: CacheLayout) -> list[str]:
    """Faults where a page that a slice writes is in more than one place of one table."""
    places = Counter(page for part in batch.slices for span in part.spans for page in span.ids)
    return [
        f"step {batch.step}: a page is written that two tables hold"
        for part in batch.slices
        for group, span in zip(layout.groups, part.spans, strict=True)
        if any(places[page] > 1 for page in span.ids[part.start // group.page_tokens - span.first :])
    ]


def alone(
    request: Request,
    layout: CacheLayout,
    limit: int,
    recompute_lengths: tuple[int, ...] = (),
    scaled_past: int | None = None,
) -> list[int]:
    """The answer that this request gets when nothing else runs, `prior` left out."""
    model = TinyModel(layout, recompute_lengths, scaled_past)
    output = list(request.prior)
    computed, memory = 0, PlainMemory()
    while answer_end(request, output, limit) is None:
        tokens = (*request.prompt, *output)
        part = Slice(0, computed, tokens[computed:], len(request.prompt), len(tokens), (), None)
        output.append(model.forward(part, memory))
        computed = 0 if len(tokens) in recompute_lengths else len(tokens)
    return output[len(request.prior) :]
