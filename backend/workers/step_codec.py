"""StepEncoder and StepDecoder: a Batch as its differences from what the workers know already, and back. Pure, no torch.

Encoder and decoder walk in step: the encoder notes what each message leaves the decoder with, so nothing is asked back.

    known of a sequence     tokens at positions base ..< end, sampling, pages of each group

Tokens at a position never change, so a step names those behind `end`; where there is a gap (a prefix that was found in
the cache), or the sampler wants the ones before `base`, the sequence's tokens are sent anew. Pages are appended at the
end and dropped in front; what is anything else is sent anew. A sequence that took part in none of the last batches is
forgotten on both sides: it has ended, or is sent anew when it comes back. So memory is bounded on both sides, and
neither has to be told of the end of a sequence.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as Many

from backend.batch import Batch, PageSpan, SampleTask, Slice
from backend.request import Sampling
from backend.workers.worker_messages import SliceOrder, SpanChange, Step

# Batches that a sequence may sit out before it is forgotten: halved ones count, and so do those without its turn.
PATIENCE = 16


class _Sent:
    """What the decoder knows of one sequence."""

    __slots__ = ("base", "end", "firsts", "pages", "sampling", "used")

    def __init__(self, groups: int, start: int) -> None:
        self.base = self.end = start
        self.firsts = [0] * groups
        self.pages: list[list[int]] = [[] for _ in range(groups)]
        self.sampling: Sampling | None = None
        self.used = 0


class StepEncoder:
    """Of one engine; one encoding serves all its ranks."""

    def __init__(self) -> None:
        # In order of last use.
        self._sent: OrderedDict[int, _Sent] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        """Sequences of which something is remembered."""
        return len(self._sent)

    def encode(self, batch: Batch) -> Step:
        """The message for this Batch, which must reach every decoder: the next one builds on it.

        Raises ValueError for a slice that samples elsewhere than behind its sequence's newest token.
        """
        for part in batch.slices:
            _check(part)
        self._count += 1
        forgotten = self._forget()
        return Step(batch.step, [self._slice(part) for part in batch.slices], forgotten, batch.transfers)

    def _forget(self) -> list[int]:
        forgotten: list[int] = []
        while self._sent:
            number, oldest = next(iter(self._sent.items()))
            if self._count - oldest.used <= PATIENCE:
                break
            del self._sent[number]
            forgotten.append(number)
        return forgotten

    def _slice(self, part: Slice) -> SliceOrder:
        sent = self._sent.get(part.sequence)
        if sent is None:
            sent = self._sent[part.sequence] = _Sent(len(part.spans), part.start)
        else:
            self._sent.move_to_end(part.sequence)
        sent.used = self._count
        base, tokens = _tokens(part, sent)
        sampling = None
        if part.sample is not None and part.sample.sampling is not sent.sampling:
            sampling = sent.sampling = part.sample.sampling
        return SliceOrder(
            part.sequence,
            part.start,
            len(part.tokens),
            part.prompt_length,
            part.length,
            part.sample is not None,
            base,
            tokens,
            _spans(part.spans, sent),
            sampling,
        )


def _check(part: Slice) -> None:
    task = part.sample
    if task is None:
        return
    known = len(task.prompt) + len(task.output)
    if (len(task.prompt), known, part.start + len(part.tokens)) != (part.prompt_length, part.length, part.length):
        raise ValueError(f"sequence {part.sequence} samples behind another token than its newest")


def _tokens(part: Slice, sent: _Sent) -> tuple[int | None, list[int]]:
    """From where on the sequence's tokens are sent anew, if they are, and the tokens to send."""
    first = part.start if part.sample is None else 0
    last = part.start + len(part.tokens)
    anew = not sent.base <= first <= sent.end
    if anew:
        sent.base = sent.end = first
    tokens = _between(part, sent.end, last)
    sent.end = max(sent.end, last)
    return (first if anew else None), tokens


def _between(part: Slice, first: int, last: int) -> list[int]:
    """The sequence's tokens at positions from `first` to before `last`, the slice's end."""
    if first >= part.start:
        return list(part.tokens[first - part.start :])
    task = part.sample
    if task is None:  # only what lies in the slice is ever asked for then
        raise ValueError(f"sequence {part.sequence}: tokens before the slice are not at hand")
    boundary = len(task.prompt)
    if first >= boundary:
        return list(task.output[first - boundary : last - boundary])
    return [*task.prompt[first:], *task.output[: last - boundary]]


def _spans(spans: Many[PageSpan], sent: _Sent) -> list[SpanChange]:
    changes: list[SpanChange] = []
    for group, span in enumerate(spans):
        known, ids = sent.pages[group], span.ids
        # Both hold the same integer objects, so equal lists are compared by address.
        if span.first == sent.firsts[group] and ids == known:
            continue
        dropped = min(max(0, span.first - sent.firsts[group]), len(known))
        kept = len(known) - dropped
        if span.first < sent.firsts[group] or kept > len(ids) or list(ids[:kept]) != known[dropped:]:
            dropped, kept = len(known), 0
        appended = list(ids[kept:])
        del known[:dropped]
        known += appended
        sent.firsts[group] = span.first
        changes.append(SpanChange(group, span.first, dropped, appended))
    return changes


class _Known:
    """One sequence as a decoder has it. Its lists are what slices show; they grow in place."""

    __slots__ = ("base", "output", "pages", "sampling", "spans", "task", "tokens")

    def __init__(self, groups: int, start: int) -> None:
        self.base = start
        self.tokens: list[int] = []
        self.pages: list[list[int]] = [[] for _ in range(groups)]
        self.spans = tuple(PageSpan(0, ids) for ids in self.pages)
        self.sampling: Sampling | None = None
        # Made with the first slice that samples; its output grows with the tokens.
        self.task: SampleTask | None = None
        self.output: list[int] = []

    def learn(self, order: SliceOrder) -> None:
        if order.base is not None:
            self.base, self.tokens, self.task = order.base, [], None
        self.tokens += order.tokens
        if self.task is not None:
            self.output += order.tokens
        for change in order.spans:
            self._change(change)
        if order.sampling is not None:
            self.sampling, self.task = order.sampling, None

    def _change(self, change: SpanChange) -> None:
        ids = self.pages[change.group]
        del ids[: change.dropped]
        ids += change.appended
        if change.first != self.spans[change.group].first:
            spans = list(self.spans)
            spans[change.group] = PageSpan(change.first, ids)
            self.spans = tuple(spans)

    def sample(self, order: SliceOrder) -> SampleTask | None:
        if not order.samples:
            return None
        if self.task is None:
            if self.sampling is None or self.base:
                raise ValueError(f"sequence {order.sequence} samples, and was never told how or behind what")
            prompt, self.output = self.tokens[: order.prompt_length], self.tokens[order.prompt_length :]
            self.task = SampleTask(self.sampling, prompt, self.output)
        return self.task


class StepDecoder:
    """Of one worker. What its slices name is valid until the next call, like a scheduler's."""

    def __init__(self, groups: int) -> None:
        """groups: how many cache groups the layout has."""
        self._groups = groups
        self._known: dict[int, _Known] = {}

    def __len__(self) -> int:
        """Sequences of which something is remembered."""
        return len(self._known)

    def decode(self, step: Step) -> Batch:
        """The Batch that was encoded. Raises ValueError for a message that does not follow the ones before."""
        for number in step.forgotten:
            self._known.pop(number, None)
        return Batch(step.number, tuple(self._slice(order) for order in step.slices), step.transfers)

    def _slice(self, order: SliceOrder) -> Slice:
        known = self._known.get(order.sequence)
        if known is None:
            known = self._known[order.sequence] = _Known(self._groups, order.start)
        known.learn(order)
        first = order.start - known.base
        tokens = known.tokens[first : first + order.count]
        if len(tokens) != order.count:
            raise ValueError(f"sequence {order.sequence}: tokens at {order.start} are not known")
        return Slice(
            order.sequence,
            order.start,
            tokens,
            order.prompt_length,
            order.length,
            known.spans,
            known.sample(order),
        )
