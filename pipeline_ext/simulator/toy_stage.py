"""ToyStage: a device whose tokens depend on every page of every layer: a wrong, stale or missing page changes them.

Each token leaves in each layer one value, made of what came from the layer before, and takes along what it sees of the
values before it; the last layer's are hashed to the next token. `alone` says what comes without pages.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from backend.batch import Batch, Sampled, Slice
from backend.ending import answer_end
from backend.hidden_states import HiddenStates
from backend.request import Request
from kvcache.layout import CacheLayout, oldest_seen
from kvcache.transfer import Tier, Transfer, TransferDone

VOCABULARY = 97
# A prompt token that no answer contains: a stage that computes with it raises.
POISON = VOCABULARY
COLUMNS = 2
_PAGE_BYTES = 1000


class ToyModel:
    """The arithmetic, over a memory that others give."""

    def __init__(self, layout: CacheLayout) -> None:
        self.layers = sum(len(group.slots) for group in layout.groups)
        self.group_of = [0] * self.layers
        for number, group in enumerate(layout.groups):
            for slot in group.slots:
                self.group_of[slot] = number
        self._seen = [(layout.groups[g].window, layout.groups[g].chunked) for g in self.group_of]

    def oldest(self, layer: int, position: int) -> int:
        window, chunked = self._seen[layer]
        return oldest_seen(position, window, chunked)

    def layer(
        self, layer: int, position: int, value: int, read: Callable[[int], int], write: Callable[[int, int], None]
    ) -> int:
        write(position, value)
        oldest = self.oldest(layer, position)
        return hash((layer, value, read(oldest), read((oldest + position) // 2)))

    def token(self, position: int, value: int, read: Callable[[int], int]) -> int:
        """The next one behind this position."""
        seen = range(self.oldest(self.layers - 1, position), position + 1)
        return hash((value, *[read(one) for one in seen])) % VOCABULARY


def alone(request: Request, layout: CacheLayout, limit: int) -> list[int]:
    """The answer that this request gets when nothing else runs."""
    model = ToyModel(layout)
    memory: list[dict[int, int]] = [{} for _ in range(model.layers)]
    output: list[int] = []
    position, newest = 0, 0
    while answer_end(request, output, limit) is None:
        tokens = (*request.prompt, *output)
        value = 0
        for position in range(newest, len(tokens)):
            value = hash((tokens[position], position))
            for layer, own in enumerate(memory):
                value = model.layer(layer, position, value, own.__getitem__, own.__setitem__)
        newest = len(tokens)
        output.append(model.token(position, value, memory[-1].__getitem__))
    return output


class MissingPageError(RuntimeError):
    """A position was read that nobody has written here."""


@dataclass(slots=True)
class _View:
    """One slice's view of one layer's values in the pages."""

    part: Slice
    group: int
    page_tokens: int
    layer: int
    pages: dict[tuple[int, int], int]

    def _place(self, position: int) -> tuple[int, int]:
        span = self.part.spans[self.group]
        index = position // self.page_tokens - span.first
        if not 0 <= index < len(span.ids):
            raise MissingPageError(f"position {position} has no page in group {self.group}")
        return span.ids[index], self.layer * self.page_tokens + position % self.page_tokens

    def read(self, position: int) -> int:
        value = self.pages.get(self._place(position))
        if value is None:
            raise MissingPageError(f"position {position} of sequence {self.part.sequence} was never written here")
        return value

    def write(self, position: int, value: int) -> None:
        self.pages[self._place(position)] = value


class ToyStage:
    """The device of one stage: layers `first` to before `stop`, their pages and the host tier's. One rank."""

    def __init__(self, layout: CacheLayout, first: int, stop: int) -> None:
        self._layout, self._first, self._stop = layout, first, stop
        self._model = ToyModel(layout)
        self._pages: dict[tuple[int, int], int] = {}
        self._host: dict[int, dict[int, int]] = {}
        self._running: list[Transfer] = []
        self.collectives = 0

    @property
    def first(self) -> bool:
        return self._first == 0

    @property
    def last(self) -> bool:
        return self._stop == self._model.layers

    def begin(self, transfers: tuple[Transfer, ...]) -> None:
        """Before the batch computes: as the promises of `kvcache.transfer` say."""
        read = {one.number: self._page(one.source.index) for one in transfers if one.source.tier is Tier.DEVICE}
        for one in transfers:
            if one.target.tier is Tier.HOST:
                self._host[one.target.index] = read[one.number]
            else:
                self._put(one.target.index, {})
            self._running.append(one)

    def over(self) -> tuple[TransferDone, ...]:
        """All that run end."""
        running, self._running = self._running, []
        for one in running:
            if one.target.tier is Tier.DEVICE:
                self._put(one.target.index, self._host.get(one.source.index, {}))
        return tuple(TransferDone(one.number, True, _PAGE_BYTES, 0.001) for one in running)

    def forget_transfers(self) -> None:
        """A new epoch: what runs is let end, and nobody is told."""
        self.over()

    def run(self, batch: Batch, hidden: HiddenStates | None) -> HiddenStates | list[Sampled | None]:
        """What StageWork's `run_stage` does. Raises RuntimeError for a batch that cannot be run."""
        rows = batch.token_count
        if hidden is not None:
            hidden.check("float32", rows, COLUMNS)
        values = iter(struct.unpack(f"<{rows}q", hidden.data)) if hidden is not None else None
        handed: list[int] = []
        sampled: list[Sampled | None] = []
        for part in batch.slices:
            if self.last and POISON in part.tokens:
                raise RuntimeError("out of memory: tried to allocate")
            given = [hash((token, place)) for place, token in enumerate(part.tokens, part.start)]
            if values is not None:
                given = [next(values) for _ in part.tokens]
            brought = self._slice(part, given)
            handed += brought
            if self.last:
                sampled.append(None if part.sample is None else Sampled(self._token(part, brought[-1])))
        if self.last:
            return sampled
        return HiddenStates("float32", rows, COLUMNS, struct.pack(f"<{rows}q", *handed))

    def _slice(self, part: Slice, values: list[int]) -> list[int]:
        for layer in range(self._first, self._stop):
            view = self._view(part, layer)
            values = [
                self._model.layer(layer, position, value, view.read, view.write)
                for position, value in enumerate(values, part.start)
            ]
        return values

    def _token(self, part: Slice, value: int) -> int:
        view = self._view(part, self._stop - 1)
        return self._model.token(part.start + len(part.tokens) - 1, value, view.read)

    def _view(self, part: Slice, layer: int) -> _View:
        group = self._model.group_of[layer]
        return _View(part, group, self._layout.groups[group].page_tokens, layer, self._pages)

    def _page(self, page: int) -> dict[int, int]:
        return {place: value for (one, place), value in self._pages.items() if one == page}

    def _put(self, page: int, content: dict[int, int]) -> None:
        for key in [key for key in self._pages if key[0] == page]:
            del self._pages[key]
        for place, value in content.items():
            self._pages[page, place] = value
