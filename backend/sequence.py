"""Sequence: the mutable progress of one Request. The scheduler owns it; nobody else changes it."""

from __future__ import annotations

from collections.abc import Sequence as Many
from enum import Enum

from backend.batch import PageSpan, SampleTask
from backend.request import Request
from kvcache.hit import Hit
from kvcache.page_table import PageTable
from kvcache.sequence_pages import SequencePages


class Status(Enum):
    """Where a sequence stands. A preempted one is WAITING again, with its tokens and without pages.

    FETCHING: it has its place and its pages, and some of these are still on their way from lower tiers.
    """

    WAITING = "waiting"
    FETCHING = "fetching"
    RUNNING = "running"
    FINISHED = "finished"


class Sequence:
    """One Request on its way.

    Attributes:
        number: unique over the engine's life, rising in order of arrival.
        request: what is wanted.
        deadline: time on the engine's clock after which it ends; None for never.
        status: where it stands.
        computed: positions whose K and V the cache holds, always from the first on; below `length`.
        planned: the same once all batches in flight have been committed.
        lost: positions that were computed before stages lost their pages, and are computed again, without sampling,
            before anything else is; 0, or passed by `computed`, where nothing is lost.
        ticket: rises each time its pages are given back: what was begun before is not taken in.
        output: the answer so far, `prior` included; only appended to.
        pages: its pages in the cache, and their keys.
        prefix: how many of its tokens cached pages held when it was last looked for, waiting.
        hit: what it began after when it was last admitted, or will when that has been fetched.
        may_fetch: whether lower tiers are asked for its pages; not after a fetch that failed.
        started: whether it has been admitted once.
        prefilled: whether its whole prompt has been computed once.
    """

    __slots__ = (
        "computed",
        "deadline",
        "hit",
        "key",
        "lost",
        "may_fetch",
        "number",
        "output",
        "pages",
        "planned",
        "prefilled",
        "prefix",
        "request",
        "sample_task",
        "started",
        "status",
        "ticket",
    )

    def __init__(self, number: int, request: Request, deadline: float | None, pages: SequencePages) -> None:
        self.number = number
        self.request = request
        self.deadline = deadline
        self.status = Status.WAITING
        self.computed = self.planned = self.lost = self.ticket = 0
        self.output = list(request.prior)
        self.pages = pages
        self.prefix = 0
        self.hit: Hit | None = None
        self.may_fetch = True
        self.started = False
        self.prefilled = False
        # Smaller runs first: priority, then arrival.
        self.key = (request.priority, number)
        # Reads `output` where it lies, so one task serves all steps.
        self.sample_task = SampleTask(request.sampling, request.prompt, self.output)

    @property
    def tables(self) -> tuple[PageTable, ...]:
        """One per cache group."""
        return self.pages.tables

    @property
    def length(self) -> int:
        """Tokens known so far: prompt and answer."""
        return len(self.request.prompt) + len(self.output)

    @property
    def remaining(self) -> int:
        """Known tokens that no batch has computed or will; 1 while decoding, 0 while the last one is in flight."""
        return len(self.request.prompt) + len(self.output) - self.planned

    @property
    def restoring(self) -> bool:
        """Whether what stages have lost of it has still to be planned."""
        return self.planned < self.lost

    def forget(self) -> None:
        """Its pages are given back: it begins again, and what is in flight of it does not count."""
        self.computed = self.planned = self.lost = 0
        self.ticket += 1

    def tokens(self, start: int, stop: int) -> Many[int]:
        """The tokens at positions from `start` to before `stop`."""
        prompt = self.request.prompt
        boundary = len(prompt)
        if start >= boundary:
            return self.output[start - boundary : stop - boundary]
        if stop <= boundary:
            return prompt[start:stop]
        return (*prompt[start:], *self.output[: stop - boundary])

    def spans(self) -> tuple[PageSpan, ...]:
        """Its pages as a step reads them."""
        return tuple(PageSpan(table.first, table.ids) for table in self.pages.tables)
