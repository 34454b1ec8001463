"""The executor over real worker processes: answers, failures of one rank and of all, deaths, freezes; none is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from backend.batch import Batch, PageSpan, SampleTask, Slice
from backend.engine_environment import worker_environment
from backend.engine_settings import EngineSettings
from backend.errors import ShardwiseError
from backend.executor import DeviceLostError
from backend.library.files import ModelFiles
from backend.request import Sampling
from backend.vital_signs import VitalLimits
from backend.workers import workers as workers_module
from backend.workers.meeting import Meeting
from backend.workers.rank_watch import LIMITS
from backend.workers.ranked_executor import RankedExecutor
from backend.workers.worker_messages import Describe, Described, Load, Loaded, Loading, Warm, WarmUp
from backend.workers.workers import Workers
from kvcache.transfer import Place, Tier, Transfer, TransferDone
from tests.fakes.engine_options import next_token
from tests.fakes.plans import plan
from tests.fakes.rank_options import LAYERS, RankOptions, Trouble

FILES = ModelFiles(name="test", format="gguf", weights=("/w",), folder="/w", bytes=1)
SETTINGS = EngineSettings(files=FILES)


def environment(ranks: int) -> dict[str, str]:
    return worker_environment(SETTINGS, ranks, os.environ)


@contextmanager
def spawned(
    ranks: int = 2, options: RankOptions | None = None, log: Path | None = None, limits: VitalLimits = LIMITS
) -> Iterator[Workers]:
    workers = Workers.spawn(ranks, (options or RankOptions()).command(), environment(ranks), log, limits)
    pids = workers.pids
    try:
        yield workers
    finally:
        workers.close()
        assert not any(map(psutil.pid_exists, pids)), "a worker is left, or not reaped"
        assert not any(thread.name == "ranks" for thread in threading.enumerate())


def load(workers: Workers, progress: list[tuple[int, Loading]] | None = None) -> list[Loaded]:
    orders = [Load(SETTINGS, plan(), rank, LAYERS, Meeting("", "")) for rank in range(len(workers))]
    told: list[tuple[int, Loading]] = [] if progress is None else progress
    loaded = workers.prepare(orders, Loaded, lambda rank, loading: told.append((rank, loading)))
    workers.prepare([WarmUp()] * len(workers), Warm, lambda rank, loading: None)
    workers.ready(slow=True)
    return loaded


@contextmanager
def executing(ranks: int = 2, options: RankOptions | None = None) -> Iterator[tuple[RankedExecutor, Workers]]:
    with spawned(ranks, options) as workers:
        load(workers)
        yield RankedExecutor(workers), workers


def prefill(*tokens: int, sequence: int = 0) -> Slice:
    task = SampleTask(Sampling(), tokens, ())
    return Slice(sequence, 0, tokens, len(tokens), len(tokens), (PageSpan(0, [sequence]),), task)


def batch(*slices: Slice, transfers: tuple[Transfer, ...] = ()) -> Batch:
    return Batch(1, slices, transfers)


def lost(executor: RankedExecutor, *tokens: int) -> str:
    with pytest.raises(DeviceLostError) as caught:
        executor.execute(batch(prefill(*tokens)))
    return str(caught.value)


@pytest.mark.parametrize("ranks", [1, 3])
def test_rank_0_answers_for_all(ranks: int) -> None:
    with executing(ranks) as (executor, _):
        results = executor.execute(batch(prefill(1, 2, 3), prefill(4, sequence=1)))
        assert [one and one.token for one in results] == [next_token([1, 2, 3]), next_token([4])]


def test_what_ranks_tell_of_their_start_arrives() -> None:
    progress: list[tuple[int, Loading]] = []
    with spawned() as workers:
        assert workers.ask(0, Describe(FILES), Described).facts.layers == LAYERS
        assert [one.weights_bytes for one in load(workers, progress)] == [1234, 1235]
    assert {(0, Loading("load", 100, 100)), (1, Loading("load", 100, 100))} <= set(progress)


def test_each_rank_has_a_log_beside_the_engines(tmp_path: Path) -> None:
    with spawned(log=tmp_path / "engine.log") as workers:
        load(workers)
    for rank in range(2):
        assert (tmp_path / f"engine.rank-{rank}.log").read_text() == f"rank {rank} loads\n"


def test_a_request_that_all_ranks_refuse_fails_alone() -> None:
    with executing() as (executor, _):
        with pytest.raises(RuntimeError, match="ValueError: a bad request"):
            executor.execute(batch(prefill(Trouble.ALL_FAIL), prefill(5, sequence=1)))
        results = executor.execute(batch(prefill(5, sequence=1)))
        assert [one and one.token for one in results] == [next_token([5])]


def test_one_rank_that_fails_behind_all_collectives_fails_the_request_only() -> None:
    with executing() as (executor, _):
        with pytest.raises(RuntimeError, match="a bad way to choose"):
            executor.execute(batch(prefill(Trouble.ONE_FAILS_IN_STEP)))
        assert executor.execute(batch(prefill(5, sequence=1)))


def test_one_rank_that_fails_before_a_collective_is_the_end_of_all() -> None:
    with executing() as (executor, _):
        assert "out of step after ValueError: no memory" in lost(executor, Trouble.ONE_FAILS_OUT_OF_STEP)


def test_a_failed_rank_for_which_others_wait_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "ERROR_SECONDS", 0.2)
    with executing() as (executor, workers):
        pid = workers.pids[1]
        found = lost(executor, Trouble.ONE_FAILS_OTHERS_HANG)
        assert found == f"rank 1 (pid {pid}) failed while others wait for it: ValueError: no memory"


def test_a_killed_rank_is_named_and_takes_the_others_along() -> None:
    with executing() as (executor, workers):
        pid = workers.pids[1]
        assert lost(executor, Trouble.KILL).startswith(f"rank 1 (pid {pid}) was killed by SIGKILL")


def test_a_frozen_rank_is_named() -> None:
    with executing() as (executor, workers):
        pid = workers.pids[1]
        assert lost(executor, Trouble.FREEZE).startswith(f"rank 1 (pid {pid}): it gave no sign of life")


def test_a_rank_that_hangs_in_a_step_is_named() -> None:
    limits = VitalLimits(silence=20.0, slow_step=0.3, step_factor=1.0)
    with spawned(limits=limits) as workers:
        load(workers)
        assert "a step has been running" in lost(RankedExecutor(workers), Trouble.ONE_FAILS_OTHERS_HANG)


def test_a_lost_device_is_told_in_its_own_words() -> None:
    with executing() as (executor, workers):
        pid = workers.pids[1]
        assert lost(executor, Trouble.LOST) == f"rank 1 (pid {pid}) failed: CUDA error: unspecified launch failure"


def test_the_rank_that_died_is_blamed_and_not_the_one_that_missed_it() -> None:
    with executing() as (executor, _):
        assert lost(executor, Trouble.BREAKS_OFF).startswith("rank 1 ")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_ends_while_nothing_runs_is_noticed(how: signal.Signals) -> None:
    with executing() as (executor, workers):
        executor.execute(batch(prefill(1)))
        os.kill(workers.pids[0], how)
        assert workers._watch.verdict(30.0) is not None
        with pytest.raises(DeviceLostError, match="rank 0"):
            executor.transfers_done()


def test_a_start_that_a_rank_refuses_is_refused_though_others_wait() -> None:
    with spawned(options=RankOptions(refuse_at_start=1, hang_at_start=(0,))) as workers:
        with pytest.raises(ShardwiseError, match="The file is broken") as caught:
            load(workers)
        assert (caught.value.code, caught.value.hint) == ("broken_model", "Write another.")


def test_a_bug_in_the_start_of_a_rank_is_told() -> None:
    with (
        spawned(options=RankOptions(crash_at_start=1, hang_at_start=(0,))) as workers,
        pytest.raises(DeviceLostError, match=r"rank 1 \(pid \d+\) failed: RuntimeError: a bug in start-up"),
    ):
        load(workers)


def test_a_rank_killed_in_its_start_is_named() -> None:
    with spawned(options=RankOptions(hang_at_start=(0, 1))) as workers:
        os.kill(workers.pids[0], signal.SIGKILL)
        with pytest.raises(DeviceLostError, match="rank 0"):
            load(workers)


def test_a_program_that_is_none_leaves_nothing() -> None:
    with pytest.raises(FileNotFoundError):
        Workers.spawn(2, ("/no/such/program",), environment(2))
    assert psutil.Process().children() == []


def test_a_transfer_is_over_when_all_ranks_say_so() -> None:
    transfers = tuple(
        Transfer(number, bytes(32), Place(Tier.DEVICE, 0), Place(Tier.HOST, number)) for number in range(2)
    )
    with executing() as (executor, _):
        executor.execute(batch(transfers=transfers))
        # Rank 1 says of each that it failed.
        assert executor.transfers_done() == [TransferDone(0, False, 0, 0.0), TransferDone(1, False, 0, 0.0)]
        assert executor.transfers_done(1.0) == []


def test_workers_die_with_an_engine_that_is_killed() -> None:
    program = textwrap.dedent("""
        import time
        from tests.backend.workers.test_ranked_executor import RankOptions, Workers, environment, load
        workers = Workers.spawn(2, RankOptions().command(), environment(2))
        load(workers)
        print("pids", *workers.pids, flush=True)
        time.sleep(60)
    """)
    engine = subprocess.Popen([sys.executable, "-c", program], env=environment(2), stdout=subprocess.PIPE)
    assert engine.stdout is not None
    with engine.stdout:
        line = next(line for line in engine.stdout if line.startswith(b"pids"))
        workers = [psutil.Process(int(pid)) for pid in line.split()[1:]]
        workers[0].suspend()
        engine.kill()
        engine.wait()
    assert len(workers) == 2
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert [one for one in alive if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []
