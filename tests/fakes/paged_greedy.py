"""paged_greedy: greedy answers to several prompts over pages, from anything that runs batches; in chunks, mixed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

from backend.batch import Batch, PageSpan, Sampled, SampleTask, Slice
from backend.request import Sampling
from kvcache.layout import CacheLayout


@dataclass
class _Running:
    number: int
    prompt: Sequence[int]
    output: list[int] = field(default_factory=list)
    computed: int = 0
    pages: list[list[int]] = field(default_factory=list)  # by group
    chosen: list[Sampled] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return [*self.prompt, *self.output]


def paged_greedy(
    execute: Callable[[Batch], Sequence[Sampled | None]],
    layout: CacheLayout,
    prompts: Sequence[Sequence[int]],
    length: int,
    chunk: int,
    recompute_lengths: Sequence[int] = (),
) -> list[list[Sampled]]:
    """`length` choices for each prompt, with logprobs. No page is used twice; each group's are its own."""
    fresh = count()
    running = [_Running(number, prompt) for number, prompt in enumerate(prompts)]
    for step in count():
        live = [one for one in running if len(one.output) < length]
        if not live:
            return [one.chosen for one in running]
        slices = tuple(_slice(one, layout, chunk, fresh, recompute_lengths) for one in live)
        for one, part, sampled in zip(live, slices, execute(Batch(step, slices)), strict=True):
            one.computed = part.start + len(part.tokens)
            if sampled is not None and sampled.token is not None:
                one.output.append(sampled.token)
                one.chosen.append(sampled)
    raise AssertionError


def _slice(one: _Running, layout: CacheLayout, chunk: int, fresh: count[int], limits: Sequence[int]) -> Slice:
    tokens = one.tokens
    if any(one.computed == limit and len(tokens) > limit for limit in limits):
        one.computed = 0
    one.pages = one.pages or [[] for _ in layout.groups]
    stop = min(len(tokens), one.computed + chunk)
    for group, pages in zip(layout.groups, one.pages, strict=True):
        while len(pages) * group.page_tokens < stop:
            pages.append(next(fresh))
    task = SampleTask(Sampling(logprobs=1), one.prompt, tuple(one.output)) if stop == len(tokens) else None
    return Slice(
        sequence=one.number,
        start=one.computed,
        tokens=tokens[one.computed : stop],
        prompt_length=len(one.prompt),
        length=len(tokens),
        spans=tuple(PageSpan(0, tuple(pages)) for pages in one.pages),
        sample=task,
    )
