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
        "may_fetch",
        "number",
        "output",
        "pages",
        "prefilled",
        "prefix",
        "request",
        "sample_task",
        "started",
        "status",
    )

    def __init__(self, number: int, request: Request, deadline: float | None, pages: SequencePages) -> None:
        self.number = number
        self.request = request
        self.deadline = deadline
        self.status = Status.WAITING
        self.computed = 0
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
        """Known tokens that are not computed yet; 1 while decoding."""
        return len(self.request.prompt) + len(self.output) - self.computed

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
