"""OneBatch: the half of an Executor that has one batch in flight at most, over its `execute`."""

from __future__ import annotations

from backend.batch import Batch, Sampled
from backend.standing import Standing


class OneBatch:
    """A base of executors that run a batch at once: it waits in `begin` and runs in `finish`, whatever the patience."""

    _begun: Batch | None = None

    @property
    def depth(self) -> int:
        """See Executor."""
        return 1

    @property
    def in_flight(self) -> int:
        """See Executor."""
        return 0 if self._begun is None else 1

    def begin(self, batch: Batch) -> None:
        """See Executor. Raises RuntimeError where one is in flight."""
        if self._begun is not None:
            raise RuntimeError("a batch is in flight already")
        self._begun = batch

    def finish(self, patience: float | None = None) -> list[Sampled | None]:
        """See Executor. Raises RuntimeError where none is in flight."""
        batch, self._begun = self._begun, None
        if batch is None:
            raise RuntimeError("no batch is in flight")
        return self.execute(batch)

    def standing(self) -> Standing | None:
        """See Executor: where the ranks are is told at the start, and nothing is ever mended."""
        return None

    def execute(self, batch: Batch) -> list[Sampled | None]:
        """See Executor."""
        raise NotImplementedError
