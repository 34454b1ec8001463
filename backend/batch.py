"""Batch: the work of one step as plain data. The scheduler makes it, the runner turns it into tokens."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field

from backend.request import Sampling
from kvcache.transfer import Transfer


@dataclass(frozen=True, slots=True)
class PageSpan:
    """A sequence's pages in one cache group: page `ids[i]` holds positions from `(first + i) * page_tokens` on.

    `first` is above 0 where a sliding window has released the pages before it. `ids` covers every position that
    this step writes, and every one it may still read. It is the page table's own list, never a copy: read it before
    the scheduler's next call.
    """

    first: int
    ids: Many[int]


@dataclass(frozen=True, slots=True)
class SampleTask:
    """What the sampler needs to choose one token; `prompt` and `output` are read only.

    `output` holds the answer so far, so its length is the index of the token to be chosen; it grows at the commit.
    """

    sampling: Sampling
    prompt: Many[int]
    output: Many[int]


@dataclass(frozen=True, slots=True)
class Slice:
    """The tokens of one sequence that a step computes.

    Attributes:
        sequence: number of the sequence, unique over the engine's life.
        start: position of the first token; the cache holds exactly the positions before it.
        tokens: token ids to feed, at least one.
        prompt_length: tokens of the request's prompt, answer excluded. Dynamic NTK scales the token at a position by
            max(prompt_length, position + 1), so chunks and recomputation choose as the first pass did.
        length: tokens of the sequence known at this step, by which longrope chooses for all of the slice.
        spans: pages, one span per cache group, in the layout's order.
        sample: set on the slice that ends at the sequence's newest token: choose the next one.
        ticket: of the sequence's admission, for the scheduler: what an earlier admission brings is not taken in.
    """

    sequence: int
    start: int
    tokens: Many[int]
    prompt_length: int
    length: int
    spans: tuple[PageSpan, ...]
    sample: SampleTask | None
    ticket: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's work: slices of distinct sequences, decode and prefill mixed.

    `transfers` are begun before the slices are computed, with the promises of `kvcache.transfer`; a Batch may consist
    of them alone. Slices may share pages that none of them writes. Where `until` is set, only the stages before that
    number compute the slices, none of which samples then: pages are being computed again that a stage has lost.
    """

    step: int
    slices: tuple[Slice, ...]
    transfers: tuple[Transfer, ...] = ()
    until: int | None = None

    @property
    def token_count(self) -> int:
        return sum(len(part.tokens) for part in self.slices)


@dataclass(frozen=True, slots=True)
class Sampled:
    """The sampler's choice for one slice: a token with logprobs where asked, or None for logits that are not finite."""

    token: int | None
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
