"""RankedExecutor: the Executor over workers, one process a rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from backend.batch import Batch, Sampled
from backend.measured_rank import MeasuredRank
from backend.one_batch import OneBatch
from backend.workers.step_codec import StepEncoder
from backend.workers.transfer_tally import TransferTally
from backend.workers.worker_messages import Measure, Measured, Poll, StepFailed, unpack_results
from backend.workers.workers import StepAnswer, Workers
from kvcache.transfer import TransferDone


class RankedExecutor(OneBatch):
    """An Executor. All ranks run each batch; rank 0, which has the logits, chooses the tokens."""

    def __init__(self, workers: Workers) -> None:
        """Owns the workers, which have loaded a model, from now on."""
        self._workers = workers
        self._encoder = StepEncoder()
        self._tally = TransferTally(len(workers))
        self._stepped = False

    def execute(self, batch: Batch) -> list[Sampled | None]:
        """See Executor. Raises RuntimeError, with a rank's words, for a batch that could not be run."""
        message = self._encoder.encode(batch)
        self._tally.begin(batch.transfers)
        answers = self._workers.step(message)
        self._stepped = True
        self._take_in(answers)
        first = answers[0]
        failed = [answer for answer in answers if isinstance(answer, StepFailed)]
        if failed or isinstance(first, StepFailed):
            self._fail(failed[0].text, answers)
        return unpack_results(first)

    def _fail(self, text: str, answers: Sequence[StepAnswer]) -> NoReturn:
        """A batch failed: the ranks go on where none is behind another, or else are lost."""
        if len({answer.collectives for answer in answers}) > 1:
            counts = ", ".join(str(answer.collectives) for answer in answers)
            self._workers.lose(f"the ranks are out of step after {text} (collectives begun: {counts})")
        raise RuntimeError(text)

    def transfers_done(self, patience: float = 0.0) -> list[TransferDone]:
        """See Executor. Ends of transfers come with the steps; ranks are asked for them only where no step is run."""
        self._workers.check()
        stepped, self._stepped = self._stepped, False
        over = self._tally.take()
        if over or not self._tally.running or (stepped and not patience):
            return over
        self._take_in(self._workers.step(Poll(patience)))
        return self._tally.take()

    def _take_in(self, answers: Sequence[StepAnswer]) -> None:
        for answer in answers:
            self._tally.report(answer.over)

    def measure(self) -> tuple[MeasuredRank, ...]:
        """See Executor."""
        answers = self._workers.prepare([Measure()] * len(self._workers), Measured, lambda rank, loading: None)
        return tuple(answer.rank for answer in answers)

    def close(self) -> None:
        self._workers.close()
