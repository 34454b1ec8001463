"""A tiny real model over ranks in processes of their own answers as one rank does, with lower tiers and without."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from backend.compose_engine import ComposedEngine, compose_engine, plan_engine
from backend.compose_ranks import UNMEASURED, compose_ranks, ranks_to_expect
from backend.engine_settings import EngineSettings
from backend.errors import SettingError
from backend.library.files import ModelFiles
from backend.request import Request, Sampling
from tests.fakes.tiny_models import make_checkpoint

PROMPTS = tuple(tuple((7 * number + 3 * position) % 90 + 3 for position in range(40)) for number in range(6))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    return make_checkpoint("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHARDWISE_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def settings(files: ModelFiles, **changes: object) -> EngineSettings:
    plain = {"device": "cpu", "dtype": "float32", "max_context": 96, "threads": 2, "host_cache": 0}
    return EngineSettings(files=files, **(plain | changes))  # pyright: ignore[reportArgumentType]


def quiet(stage: str, done: int, total: int) -> None:
    pass


def answers(composed: ComposedEngine, turn: str = "a") -> list[list[int]]:
    """The tokens that each prompt gets, all running at once."""
    engine = composed.engine
    found: dict[str, list[int]] = {}
    for number, prompt in enumerate(PROMPTS):
        engine.submit(Request(id=f"{turn}{number}", prompt=prompt, sampling=Sampling(max_tokens=20)))
    while engine.has_work:
        output = engine.step()
        for token in output.tokens:
            found.setdefault(token.request, []).append(token.token)
        assert all(end.reason == "length" for end in output.ends), output.ends
    return [found[f"{turn}{number}"] for number in range(len(PROMPTS))]


def check_measured(composed: ComposedEngine) -> None:
    """Each rank's memory has the Plan's terms in the Plan's order, exact where they are known, and they add up."""
    measured = composed.engine.measure()
    assert [one.rank for one in measured] == list(range(len(composed.plan.ranks)))
    for rank, one, weights in zip(composed.plan.ranks, measured, composed.weights_bytes, strict=True):
        found = {term.name: term.bytes for term in one.terms}
        assert list(found) == [term.name for term in rank.memory]
        assert found["weights"] == weights
        assert found["kv"] == composed.plan.pages * rank.page_bytes
        assert found.get("host cache", 0) == composed.plan.host_pages * rank.page_bytes
        assert found["activations"] >= 0
        assert found["libraries"] > 50 << 20
        assert 0 <= one.untouched <= found["kv"] + found.get("host cache", 0)
        # What the terms name is there, but for what a step had and gave back.
        resting = one.total - one.untouched - found["activations"]
        assert resting <= one.resident + (1 << 20) <= one.total - one.untouched + (2 << 20)
        assert one.proportional is not None
        assert one.proportional <= one.resident


def close(composed: ComposedEngine) -> None:
    composed.engine._executor.close()
    assert not any(map(psutil.pid_exists, set(composed.rank_pids) - {os.getpid()}))


def test_two_ranks_answer_as_one_does_also_when_pages_go_to_the_host_and_back(files: ModelFiles, home: Path) -> None:
    alone = compose_engine(settings(files, kv_pool=1 << 20), quiet)
    assert alone.rank_pids == (os.getpid(),)
    assert alone.plan == plan_engine(settings(files, kv_pool=1 << 20))
    check_measured(alone)
    wanted = answers(alone)
    check_measured(alone)
    close(alone)
    stages: list[tuple[str, int, int]] = []
    small = settings(files, tensor_parallel=2, kv_pool=12 * alone.plan.page_bytes, host_cache=1 << 20, kv_format="auto")
    ranked = compose_engine(small, lambda *stage: stages.append(stage))
    try:
        assert UNMEASURED in ranked.plan.reasons
        assert len(ranked.weights_bytes) == 2
        assert max(ranked.weights_bytes) < alone.weights_bytes[0]
        assert list(dict.fromkeys(stage for stage, _, _ in stages)) == ["read", "load", "pack", "warm up"]
        check_measured(ranked)
        assert answers(ranked) == wanted
        assert answers(ranked, "again") == wanted
        check_measured(ranked)
        cache = ranked.engine.statistics().cache
        assert cache.offloaded_pages > 0
        assert cache.host_fetched_pages > 0
        assert cache.failed_transfers == 0
    finally:
        close(ranked)
    assert [one.name for one in (home / "ranks").iterdir()] == [str(os.getppid())]


def test_one_rank_can_go_through_a_worker(files: ModelFiles) -> None:
    ranked = compose_ranks(settings(files, tensor_parallel=1), quiet, 1, even_one=True)
    assert isinstance(ranked, ComposedEngine)
    alone = compose_engine(settings(files), quiet)
    try:
        assert ranked.rank_pids != (os.getpid(),)
        assert answers(ranked) == answers(alone)
    finally:
        close(ranked)
        close(alone)


def test_a_disk_tier_of_several_ranks_is_refused(files: ModelFiles, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="--disk-cache"):
        compose_engine(settings(files, tensor_parallel=2, disk_cache=1 << 30, cache_dir=str(tmp_path)), quiet)
    assert psutil.Process().children() == []


@pytest.mark.parametrize(("asked", "expected"), [(None, 1), (1, 1), (3, 3), (10_000, 16)])
def test_as_many_workers_start_ahead_as_the_plan_will_want(files: ModelFiles, asked: int | None, expected: int) -> None:
    assert ranks_to_expect(settings(files, tensor_parallel=asked)) == expected
