"""The program of a test's worker process: the real process around a deterministic rank, without torch."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import msgspec

from backend.batch import Batch, Sampled
from backend.errors import BrokenModelError
from backend.executor import DeviceLostError
from backend.library.files import ModelFiles
from backend.measured_rank import MeasuredRank
from backend.planner.model_facts import ModelFacts
from backend.planner.plan import MemoryTerm
from backend.workers.rank_work import OnProgress
from backend.workers.worker_messages import Load, Loaded
from backend.workers.worker_process import main
from kvcache.layout import build_layout
from kvcache.transfer import TransferDone
from tests.fakes.hashing import HashingRank
from tests.fakes.rank_options import LAYERS, RankOptions, Trouble


class FakeRank:
    """A RankWork that hashes. Prompt tokens make trouble, on one rank or on all, as `Trouble` says."""

    def __init__(self, options: RankOptions) -> None:
        self._options = options
        self._rank = 0
        self._hashing = HashingRank(16)
        self._over: list[TransferDone] = []
        self.collectives = 0
        self.groups = 1

    def describe(self, files: ModelFiles) -> ModelFacts:
        return ModelFacts(files.name, LAYERS, (1,), 8, 8, 997, 4096, 64, "float32")

    def load(self, order: Load, on_progress: OnProgress) -> Loaded:
        print(f"rank {order.rank} loads", flush=True)
        self._rank = order.rank
        self._hashing = HashingRank(build_layout(order.layers, 4).groups[0].page_tokens)
        if self._options.refuse_at_start == order.rank:
            raise BrokenModelError("The file is broken", "It is a test.", "Write another.")
        if self._options.crash_at_start == order.rank:
            raise RuntimeError("a bug in start-up")
        if order.rank in (self._options.hang_at_start or ()):
            threading.Event().wait()
        for done in (0, 50, 100):
            on_progress("load", done, 100)
        return Loaded("cpu", 1234 + order.rank, ("plain",))

    def warm_up(self, on_progress: OnProgress) -> None:
        on_progress("warm up", 0, 0)

    def measure(self) -> MeasuredRank:
        return MeasuredRank(self._rank, "cpu", (MemoryTerm("weights", 1234 + self._rank),), 5000 + self._rank)

    def execute(self, batch: Batch) -> list[Sampled | None]:
        self._over = [TransferDone(one.number, self._rank == 0, 10, 0.1 + self._rank) for one in batch.transfers]
        if self._options.empty:
            return [Sampled(0) for _ in batch.slices] if self._rank == 0 else []
        time.sleep(self._options.step_seconds)
        for part in batch.slices:
            for token in part.tokens:
                self._meet(token)
        self.collectives += 2
        results = self._hashing.execute(batch)
        return results if self._rank == 0 else []

    def _meet(self, token: int) -> None:
        match token:
            case Trouble.KILL if self._rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            case Trouble.FREEZE if self._rank == 1:
                os.kill(os.getpid(), signal.SIGSTOP)
            case Trouble.ALL_FAIL:
                raise ValueError("a bad request")
            case Trouble.ONE_FAILS_IN_STEP if self._rank == 0:
                self.collectives += 2
                raise ValueError("a bad way to choose")
            case Trouble.ONE_FAILS_OUT_OF_STEP if self._rank == 1:
                raise ValueError("no memory")
            case Trouble.ONE_FAILS_OTHERS_HANG if self._rank == 1:
                raise ValueError("no memory")
            case Trouble.LOST if self._rank == 1:
                raise DeviceLostError("CUDA error: unspecified launch failure")
            case Trouble.BREAKS_OFF if self._rank == 0:
                # As a collective does whose peer dies a moment later, or earlier.
                raise DeviceLostError("connection closed by peer")
            case Trouble.BREAKS_OFF:
                time.sleep(0.1)
                os.kill(os.getpid(), signal.SIGKILL)
            case Trouble.KILL | Trouble.FREEZE | Trouble.ONE_FAILS_OTHERS_HANG | Trouble.LOST:
                threading.Event().wait()  # in a collective that never ends
            case _:
                pass

    def transfers_done(self, patience: float) -> list[TransferDone]:
        over, self._over = self._over, []
        return over


if __name__ == "__main__":
    chosen = msgspec.json.decode(sys.argv[1], type=RankOptions)
    main(sys.argv[2:], lambda: FakeRank(chosen))
