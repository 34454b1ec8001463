"""Flights: the batches that are on their way through the stages in one epoch, and what the workers answered."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from backend.batch import Sampled
from backend.workers.transfer_tally import TransferTally
from kvcache.transfer import Transfer, TransferDone
from pipeline_ext.messages import Polled, StageDone, StageFailed
from pipeline_ext.stage_machine import SKIPPED

StageAnswer = StageDone | StageFailed


class ProtocolError(RuntimeError):
    """A worker answered what it was not asked."""


@dataclass(slots=True)
class Flight:
    """One batch, by its number in the epoch. `begun` and `over` are monotonic seconds."""

    number: int
    slices: int
    samples: bool
    tokens: int
    begun: float
    over: float = 0.0
    answers: dict[str, StageAnswer] = field(default_factory=dict)

    @property
    def error(self) -> str | None:
        """Why it failed, in the words of the worker where it did; None where all is well."""
        failed = [one.text for one in self.answers.values() if isinstance(one, StageFailed)]
        return next((text for text in failed if text != SKIPPED), failed[0] if failed else None)


class Flights:
    """Of the `crews` of one epoch: names of workers, stage after stage and rank after rank."""

    def __init__(self, crews: Sequence[Sequence[str]]) -> None:
        self._crews = [tuple(crew) for crew in crews]
        self._workers = frozenset(worker for crew in crews for worker in crew)
        self._flying: OrderedDict[int, Flight] = OrderedDict()
        self._next = 0
        self._tally = TransferTally(len(self._workers))
        self._unpolled: set[str] = set()

    def __len__(self) -> int:
        """Batches that have begun and were not taken."""
        return len(self._flying)

    @property
    def transfers_running(self) -> bool:
        return self._tally.running

    @property
    def polling(self) -> bool:
        """Whether a worker still owes the answer to a Poll."""
        return bool(self._unpolled)

    def begin(self, slices: int, samples: bool, tokens: int, transfers: Sequence[Transfer], now: float) -> int:
        """The number of the next step."""
        number = self._next
        self._next += 1
        self._tally.begin(transfers)
        self._flying[number] = Flight(number, slices, samples, tokens, now)
        return number

    def poll(self) -> None:
        """All workers are asked for transfers that are over."""
        self._unpolled = set(self._workers)

    def answer(self, worker: str, answer: StageAnswer, now: float) -> Flight | None:
        """A worker's answer; the flight, if it is complete with it. Raises ProtocolError for one that is not due."""
        flight = self._flying.get(answer.number)
        if flight is None or worker in flight.answers or worker not in self._workers:
            raise ProtocolError(f"it answered step {answer.number}, which it was not asked")
        chooses = worker == self._crews[-1][0] and flight.samples
        if chooses and isinstance(answer, StageDone) and len(answer.results) != flight.slices:
            raise ProtocolError(f"it has {len(answer.results)} results for {flight.slices} sequences")
        self._report(answer.over)
        flight.answers[worker] = answer
        if len(flight.answers) < len(self._workers):
            return None
        flight.over = now
        return flight

    def polled(self, worker: str, answer: Polled) -> None:
        """A worker's answer to Poll. Raises ProtocolError."""
        self._unpolled.discard(worker)
        self._report(answer.over)

    def _report(self, over: Sequence[TransferDone]) -> None:
        try:
            self._tally.report(over)
        except KeyError as error:
            raise ProtocolError(f"it ended transfer {error}, which does not run") from None

    def complete(self) -> Flight | None:
        """The oldest batch, if all have answered; it is still counted."""
        if not self._flying:
            return None
        oldest = next(iter(self._flying.values()))
        return oldest if len(oldest.answers) == len(self._workers) else None

    def take(self) -> Flight:
        """The oldest batch, which is complete, not counted any more."""
        return self._flying.popitem(last=False)[1]

    def transfers_done(self) -> list[TransferDone]:
        """Those that are over on all ranks of all stages since the last call."""
        return self._tally.take()

    def owes(self, stage: int) -> bool:
        """Whether a worker of this stage still owes the answer to a step."""
        crew = self._crews[stage]
        return any(not flight.answers.keys() >= set(crew) for flight in self._flying.values())

    def out_of_step(self, flight: Flight) -> int | None:
        """The first stage whose ranks have begun unequal numbers of collectives by the end of this batch."""
        for stage, crew in enumerate(self._crews):
            if len({flight.answers[worker].collectives for worker in crew}) > 1:
                return stage
        return None

    def results(self, flight: Flight) -> list[Sampled | None]:
        """What the last stage chose; None for every slice where it had nothing to compute."""
        answer = flight.answers[self._crews[-1][0]]
        if not isinstance(answer, StageDone) or not flight.samples:
            return [None] * flight.slices
        return [None if one is None else Sampled(*one) for one in answer.results]

    def times(self, flight: Flight) -> list[tuple[float, float]]:
        """Of each stage's rank 0: seconds it computed, and seconds it had nothing to do before."""
        answers = [flight.answers[crew[0]] for crew in self._crews]
        return [(one.seconds, one.waited) for one in answers if isinstance(one, StageDone)]
