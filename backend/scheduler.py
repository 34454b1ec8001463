"""Scheduler: chooses each step's Batch and takes in what it brought. Pure: no torch, no clock, no device.

The one rule: each step gives each sequence a number of tokens under a budget. Running sequences that decode come first,
then prompts in slices, then admission of waiting ones, each in order of (priority, arrival). Where several batches are
in flight, each takes its share (`shares`); a sequence decodes in one of them, slices of its prompt follow each other:

    waiting --admit--> (fetching) --> running --answer complete, cancelled, deadline, error--> finished
       ^                   |             |
       +--- fetch failed --+-- preempt --+   pages released, tokens kept; what is not cached then is computed again

A sequence begins after the longest prefix that cached pages hold; one whose next pages an earlier one is computing lets
it. The first running sequence can always take the pages of all later ones, at once or when transfers that hold some are
over, and the pool holds any sequence alone: so it moves on and nothing starves.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from collections.abc import Sequence as Many
from dataclasses import replace

from backend import sequence_checks
from backend.admission import Admission, order
from backend.batch import Batch, Sampled, Slice
from backend.departures import Departures
from backend.ending import answer_end, end_at_once
from backend.errors import SettingError
from backend.events import End, EndReason, EngineStatistics, Start, Token
from backend.lost_pages import LostPages, can_restore
from backend.prefills import Prefills
from backend.request import Request
from backend.room import longest_sequence
from backend.rope_class import rope_class
from backend.sequence import Sequence, Status
from backend.shares import decode_share, token_share
from backend.step_work import StepWork
from kvcache.cache_manager import CacheManager
from kvcache.sequence_pages import SequencePages
from kvcache.statistics import CacheMap
from kvcache.transfer import TransferDone

NOT_FINITE = "The model's logits were not finite (NaN or infinity), so no token could be chosen."


class Scheduler:
    """Owns all sequences, their pages and their order.

    One step is `schedule`, the run of its Batch elsewhere, and `commit`; further batches may be scheduled before, and
    are committed in the same order. `add` and `cancel` may be called at any time and take effect at the next `schedule`
    or `expire`; `fail` belongs between the run and its `commit`. Tables change in these methods and `mend` only.

    A sequence that ends or is preempted gives its pages back at once, even while batches in flight name them: all
    stages run batches in their order, so whoever gets a page writes it after the last batch that was planned before.
    What such a batch then brings for the sequence is not taken in.

    `longest_sequence` is the most positions that prompt and answer may take: `max_context`, or less where the pool
    could not hold a sequence of that length alone.
    """

    def __init__(
        self,
        cache: CacheManager,
        *,
        max_context: int,
        max_sequences: int,
        step_tokens: int,
        recompute_lengths: tuple[int, ...] = (),
        scaled_past: int | None = None,
    ) -> None:
        """recompute_lengths, scaled_past: as in `rope_class`.

        Raises SettingError where limits or pool are too small to serve anything."""
        if min(max_context - 1, max_sequences, step_tokens) < 1:
            raise SettingError(
                "The engine's limits leave no room for a request.",
                f"max-context is {max_context}, max-sequences {max_sequences}, step-tokens {step_tokens}.",
                "Give a max-context of at least 2, and at least 1 for the others.",
            )
        self._cache = cache
        self._max_context = max_context
        self._step_tokens = step_tokens
        # A step must have a token for each running sequence.
        self._max_sequences = min(max_sequences, step_tokens)
        self._recompute_lengths = recompute_lengths
        self._scaled_past = scaled_past
        self.longest_sequence = longest_sequence(cache, max_context, step_tokens)
        self._live: dict[str, Sequence] = {}
        self._by_number: dict[int, Sequence] = {}
        self._running: list[Sequence] = []  # in order of key
        self._departures = Departures()
        self._prefills = Prefills(cache.span)
        self._admission = Admission(cache, self._prefills, step_tokens, self._max_sequences, self._run)
        self._lost = LostPages(step_tokens, self._share)
        self._starts: list[Start] = []
        self._ends: list[End] = []
        # Ends to be told when the pages of the sequence have been handed over, by the order's number.
        self._handing: dict[int, End] = {}
        self._next_number = 0
        self._steps = 0
        self._prompt_tokens = self._generation_tokens = self._preemptions = self._nan_requests = 0

    def add(self, request: Request, now: float) -> None:
        """Takes a request in. One that cannot be served, or is complete already, ends at the next commit.

        Raises ValueError where a live request has this id.
        """
        if request.id in self._live:
            raise ValueError(f"a request with id {request.id!r} is live already")
        end = end_at_once(request, self._max_context, self.longest_sequence)
        if end is not None:
            self._ends.append(end)
            return
        deadline = None if request.timeout is None else now + request.timeout
        length = len(request.prompt) + len(request.prior)
        sequence = Sequence(self._next_number, request, deadline, self._open(request, length))
        self._next_number += 1
        self._live[request.id] = self._by_number[sequence.number] = sequence
        self._admission.wait(sequence)
        if deadline is not None:
            self._departures.expect(sequence.number, deadline)

    def _open(self, request: Request, length: int) -> SequencePages:
        """An empty handle for the pages of this request, of which so many tokens are known."""
        kind = rope_class(len(request.prompt), length, self._recompute_lengths, self._scaled_past)
        return self._cache.open(request.cache_salt, kind, request.owner)

    def cancel(self, request_id: str) -> None:
        """Ends this request at the next schedule; an id that is not live is ignored."""
        sequence = self._live.get(request_id)
        if sequence is not None:
            self._departures.cancel(sequence.number)

    def fail(self, part: Slice, message: str) -> None:
        """Ends the sequence of this slice, which the executor could not run; the slice is not committed."""
        sequence = self._admitted(part)
        if sequence is not None:
            self._end(sequence, "error", message)

    @property
    def has_work(self) -> bool:
        """Whether a step would bring anything: a sequence to move on, or an end to report."""
        return bool(self._live or self._ends or self._handing)

    @property
    def awaits_transfers(self) -> bool:
        """Whether transfers run whose end may let an otherwise empty step do something."""
        return self._cache.transfers_running > 0

    def transfers_done(self, done: Iterable[TransferDone]) -> None:
        """Takes in which transfers are over."""
        for one in done:
            self._cache.finish(one)

    def observe_compute(self, tokens: int, seconds: float) -> None:
        """So many prompt tokens were computed in this time."""
        self._cache.observe_compute(tokens, seconds)

    def idle(self) -> Batch:
        """While there is no work: a batch of transfers that put cached pages on disk, or an empty one."""
        self._cache.store_idle()
        return Batch(self._steps, (), self._cache.take_transfers())

    def schedule(self, now: float, depth: int = 1) -> Batch:
        """The next step's work, one of `depth` batches that are to be in flight.

        It has no slices only where no sequence is left, or all that are left are in flight or await transfers. Its
        spans hold until the next call.
        """
        self.expire(now)
        self._admission.take_in_fetched()
        self._steps += 1
        if self._lost.left(self._running):
            return self._lost.in_turn(self._running, self._steps, depth, self._plan)
        return self._plan(depth)

    def _plan(self, depth: int) -> Batch:
        """A step's work by the one rule."""
        preemptions, lacking = self._preemptions, False
        decodes = [sequence for sequence in self._running if sequence.remaining == 1]
        prefills = [sequence for sequence in self._running if sequence.remaining > 1]
        if self._lost.until:
            prefills = [sequence for sequence in prefills if not sequence.restoring]
        work = StepWork(self._step_tokens)
        if depth > 1:
            decoding = sum(sequence.remaining <= 1 for sequence in self._running)
            del decodes[decode_share(decoding, depth) :]
            work = StepWork(min(self._step_tokens, len(decodes) + self._prompt_share(depth)))
        for sequence in (*decodes, *prefills):
            count = min(sequence.remaining, work.budget)
            if depth > 1:
                # What may be in flight of it, for which the pool has pages beside its window.
                count = min(count, self._step_tokens - sequence.planned + sequence.computed)
            # An earlier one of this loop may have preempted it.
            if count > 0 and sequence.status is Status.RUNNING:
                if self._make_room(sequence, count, work):
                    work.give(sequence, count)
                else:
                    lacking = True
        # Whoever was preempted just now would come straight back into the pages that somebody else is about to need.
        if self._admission.waiting and not lacking and self._preemptions == preemptions:
            self._admission.admit(work, self._running)
        return work.batch(self._steps, self._cache.take_transfers())

    def _prompt_share(self, depth: int) -> int:
        """Tokens of prompts for one of `depth` batches."""
        tokens = sum(one.length - one.computed for one in self._running if one.length - one.computed > 1)
        for sequence in self._admission.waiting:
            if tokens >= self._step_tokens:
                break
            tokens += sequence.length
        return token_share(tokens, self._step_tokens, depth)

    def void(self) -> None:
        """Nothing of what is in flight will be committed: it is planned again."""
        for sequence in self._running:
            sequence.planned = sequence.computed

    def again(self, batch: Batch) -> Batch:
        """What of an uncommitted batch has still to be run after `void`, now that pages may have moved; no transfers.

        The caller runs it before anything else is scheduled.
        """
        live = [(part, self._admitted(part)) for part in batch.slices]
        slices = [replace(part, spans=one.spans()) for part, one in live if one is not None]
        return replace(batch, slices=tuple(slices), transfers=())

    def mend(self, lost: tuple[int, ...]) -> None:
        """Stages were joined anew: what was in flight, transfers too, is void, and these have lost their pages."""
        self.void()
        self._cache.fail_transfers()
        if not lost:
            return
        self._admission.stop_fetching()
        for sequence in [one for one in self._running if not can_restore(one)]:
            self._preempt(sequence)
        self._cache.lose_unheld(sequence.pages for sequence in self._running)
        for sequence in self._running:
            self._prefills.end(sequence)
        self._lost.lose(self._running, lost)
        for sequence in self._running:
            self._prefills.begin(sequence)

    def commit(self, batch: Batch, sampled: Many[Sampled | None]) -> tuple[list[Token], list[End]]:
        """Takes in what a Batch, or the part of it that ran, brought: new tokens, and all ends since the last time."""
        tokens: list[Token] = []
        for part, choice in zip(batch.slices, sampled, strict=True):
            sequence = self._admitted(part)
            if sequence is None:
                continue
            self._advance(sequence, part)
            if (part.sample is None) is not (choice is None):
                raise RuntimeError(f"sequence {part.sequence}: sampled {choice} for {part.sample}")
            if choice is not None:
                self._accept(sequence, choice, tokens)
        self._ends += [self._handing.pop(number) for number in self._cache.handed_over()]
        ends, self._ends = self._ends, []
        return tokens, ends

    def take_starts(self) -> list[Start]:
        """Who was admitted for the first time, since the last call."""
        starts, self._starts = self._starts, []
        return starts

    def _admitted(self, part: Slice) -> Sequence | None:
        """The slice's sequence, if that has kept its pages since the slice was planned."""
        sequence = self._by_number.get(part.sequence)
        return sequence if sequence is not None and sequence.ticket == part.ticket else None

    def _advance(self, sequence: Sequence, part: Slice) -> None:
        """Its tokens of this slice are computed, and pages that are full now can be shared."""
        start, sequence.computed = sequence.computed, part.start + len(part.tokens)
        # What failed and was run again was planned no more.
        sequence.planned = max(sequence.planned, sequence.computed)
        if start < sequence.lost:
            self._lost.restored(sequence)
        unit = sequence.pages.chain.unit
        if start // unit != sequence.computed // unit:
            self._share(sequence, start)

    def _share(self, sequence: Sequence, start: int) -> None:
        """Lets others share the pages that have become full since `start`."""
        self._cache.offer(sequence.pages, sequence.computed, sequence.tokens)
        self._prefills.reached(sequence, start)

    def _accept(self, sequence: Sequence, choice: Sampled, tokens: list[Token]) -> None:
        """Appends the chosen token, and ends the sequence or makes it ready for the next."""
        if choice.token is None:
            self._nan_requests += 1
            self._cache.disown(sequence.pages)
            self._end(sequence, "error", NOT_FINITE)
            return
        request = sequence.request
        if not sequence.prefilled:
            sequence.prefilled = True
            self._prompt_tokens += len(request.prompt)
        tokens.append(Token(request.id, len(sequence.output), choice.token, choice.logprob, choice.top))
        sequence.output.append(choice.token)
        self._generation_tokens += 1
        reason = answer_end(request, sequence.output, self.longest_sequence)
        if reason is not None:
            self._end(sequence, reason)
        elif sequence.length - 1 in self._recompute_lengths:
            # It has just grown past this length: what the cache holds was right for shorter ones only.
            self._forget(sequence)
            sequence.pages = self._open(request, sequence.length)

    def expire(self, now: float) -> None:
        """Ends what was cancelled, and what is past its deadline."""
        for number, reason in self._departures.due(now):
            if number in self._by_number:
                self._end(self._by_number[number], reason)

    def _make_room(self, sequence: Sequence, count: int, work: StepWork) -> bool:
        """Pages for `count` more tokens of a running sequence, if need be from the last ones.

        What slides out of a window is what the newest committed token does not see: a batch in flight may have to run
        again. False if it was one of these, or if it must wait for the end of transfers that hold pages.
        """
        self._cache.slide(sequence.pages, sequence.computed)
        while not self._cache.grow(sequence.pages, sequence.planned + count):
            victim = self._running[-1]
            if victim is sequence and self._cache.pages_in_transfer:
                return False
            work.take_back(victim)
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Takes a running sequence's pages; it waits again."""
        self._running.remove(sequence)
        self._prefills.end(sequence)
        self._admission.send_back(sequence)
        self._preemptions += 1

    def _run(self, sequence: Sequence) -> None:
        """Lets an admitted sequence run from the end of its hit on, all of which is there."""
        sequence.status = Status.RUNNING
        insort(self._running, sequence, key=order)
        self._prefills.begin(sequence)
        cached = 0
        if sequence.hit is not None:
            self._cache.count_admission(sequence.length, sequence.hit)
            cached = sequence.hit.tokens
        sequence.may_fetch = True
        if not sequence.started:
            sequence.started = True
            self._starts.append(Start(sequence.request.id, min(cached, len(sequence.request.prompt))))

    def _forget(self, sequence: Sequence) -> None:
        """Gives its pages back; it will begin again after what is cached by then."""
        self._prefills.end(sequence)
        self._cache.release(sequence.pages)
        sequence.forget()

    def _queue(self, status: Status) -> list[Sequence]:
        return self._running if status is Status.RUNNING else self._admission.queue(status)

    def _end(self, sequence: Sequence, reason: EndReason, message: str = "") -> None:
        self._queue(sequence.status).remove(sequence)
        end = End(sequence.request.id, reason, message)
        if sequence.request.hand_over and reason in ("length", "stop"):
            self._handing[self._cache.hand_over(sequence.pages)] = end
        else:
            self._ends.append(end)
        self._forget(sequence)
        sequence.status = Status.FINISHED
        del self._live[sequence.request.id], self._by_number[sequence.number]

    def statistics(self) -> EngineStatistics:
        """A snapshot; times are the engine's to add."""
        return EngineStatistics(
            running=len(self._running),
            waiting=len(self._admission.waiting) + len(self._admission.fetching),
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
            preemptions=self._preemptions,
            steps=self._steps,
            nan_requests=self._nan_requests,
            cache=self._cache.statistics(),
        )

    def cache_map(self) -> CacheMap:
        """What the pages hold now, to be looked at a few times a second."""
        return self._cache.map()

    def check_integrity(self) -> None:
        """Raises AssertionError where queues, pages and progress do not fit together. Between steps only."""
        admitted = [*self._running, *self._admission.fetching]
        self._cache.check_integrity(sequence.pages for sequence in admitted)
        self._prefills.check_integrity()
        queues = {status: self._queue(status) for status in (Status.RUNNING, Status.WAITING, Status.FETCHING)}
        sequence_checks.check_integrity(queues, self._by_number, self._max_sequences)
        assert len(self._live) == len(self._by_number), "an id is lost"
