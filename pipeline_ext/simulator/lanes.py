"""Lanes: several Schedulers beside each other, each with pages of its own, whose batches are in flight together.

It stands for the engine's loop with several batches in flight: what a break does to requests, it answers by beginning
them anew with the tokens that were told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace

import msgspec

from backend.batch import Batch, PageSpan, Sampled, Slice
from backend.events import End, Token
from backend.executor import DeviceLostError, Executor, PipelineBrokenError
from backend.request import Request
from backend.scheduler import Scheduler
from pipeline_ext.simulator.toy_stage import POISON

SEQUENCES = 1000


class Lanes:
    """`pages` of each lane; `make` makes a Scheduler over so many."""

    def __init__(self, executor: Executor, lanes: int, pages: int, make: Callable[[], Scheduler]) -> None:
        self._executor, self._pages, self._make = executor, pages, make
        self._lanes = [make() for _ in range(lanes)]
        self._requests: dict[str, tuple[int, Request, list[int]]] = {}
        self._flying: deque[tuple[int, Batch]] = deque()
        self._early: list[End] = []
        self._cancelled: set[str] = set()
        self._count = 0

    @property
    def has_work(self) -> bool:
        return bool(self._flying) or any(lane.has_work for lane in self._lanes)

    def submit(self, request: Request, now: float) -> None:
        lane = self._count % len(self._lanes)
        self._count += 1
        self._requests[request.id] = (lane, request, [])
        self._lanes[lane].add(request, now)

    def cancel(self, request: str) -> None:
        if request in self._requests:
            self._cancelled.add(request)
            self._lanes[self._requests[request][0]].cancel(request)

    def step(self, now: float) -> tuple[list[Token], list[End]]:
        """Begins what can begin, then takes in the oldest batch. DeviceLostError passes through."""
        tokens: list[Token] = []
        ends: list[End] = []
        flying = {lane for lane, _ in self._flying}
        for number, lane in enumerate(self._lanes):
            if number in flying or not lane.has_work:
                continue
            batch = lane.schedule(now)
            if batch.slices:
                self._executor.begin(self._shifted(batch, number))
                self._flying.append((number, batch))
            else:
                ends += lane.commit(batch, [])[1]
        if self._flying:
            self._finish(now, tokens, ends)
        for token in tokens:
            self._requests[token.request][2].append(token.token)
        for end in ends:
            del self._requests[end.request]
        return tokens, ends

    def idle(self) -> None:
        self._executor.transfers_done()

    def live(self) -> list[Request]:
        """Requests without an end, with the tokens that they have."""
        return [msgspec.structs.replace(one, prior=(*one.prior, *told)) for _, one, told in self._requests.values()]

    def check_integrity(self) -> None:
        if not self._flying:
            for lane in self._lanes:
                lane.check_integrity()

    def _finish(self, now: float, tokens: list[Token], ends: list[End]) -> None:
        number, batch = self._flying[0]
        lane = self._lanes[number]
        try:
            sampled = self._executor.finish(0.5)
        except PipelineBrokenError:
            return self._begin_anew(now)
        except DeviceLostError:
            raise
        except RuntimeError as error:
            self._flying.popleft()
            return self._blame(lane, batch, str(error), tokens, ends)
        if sampled is None:
            return
        self._flying.popleft()
        self._commit(lane, batch, sampled, tokens, ends)

    def _blame(self, lane: Scheduler, batch: Batch, text: str, tokens: list[Token], ends: list[End]) -> None:
        """Those that made a stage raise end; the others' slices are computed again."""
        blamed = [part.sequence for part in batch.slices if POISON in part.tokens]
        if not blamed:
            raise AssertionError(f"a batch failed: {text}")
        for sequence in blamed:
            lane.fail(sequence, text)
        self._commit(lane, replace(batch, slices=()), [], tokens, ends)

    def _commit(
        self, lane: Scheduler, batch: Batch, sampled: list[Sampled | None], tokens: list[Token], ends: list[End]
    ) -> None:
        more, over = lane.commit(batch, sampled)
        tokens += more
        ends += over

    def _begin_anew(self, now: float) -> None:
        self._flying.clear()
        self._lanes = [self._make() for _ in self._lanes]
        for lane, request, told in self._requests.values():
            self._lanes[lane].add(msgspec.structs.replace(request, prior=(*request.prior, *told)), now)
            if request.id in self._cancelled:
                self._lanes[lane].cancel(request.id)

    def _shifted(self, batch: Batch, lane: int) -> Batch:
        """With pages and sequences that are this lane's alone."""
        return replace(batch, slices=tuple(self._shift(part, lane) for part in batch.slices))

    def _shift(self, part: Slice, lane: int) -> Slice:
        spans = tuple(PageSpan(span.first, [page + lane * self._pages for page in span.ids]) for span in part.spans)
        return replace(part, sequence=part.sequence + lane * SEQUENCES, spans=spans)
