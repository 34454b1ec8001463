"""ModelRank as a stage: from orders and bytes to bytes and tokens, with the pages of its own layers only."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from msgspec.structs import replace

from backend.batch import Batch, Sampled
from backend.compose_engine import plan_engine
from backend.engine_settings import EngineSettings
from backend.hidden_states import HiddenStates
from backend.layer_span import LayerSpan
from backend.library.files import ModelFiles
from backend.planner.model_facts import ModelFacts
from backend.planner.plan import Plan
from backend.surgery.describe import describe
from backend.surgery.load import read_config
from backend.workers.meeting import Meeting
from backend.workers.model_rank import ModelRank
from backend.workers.rank_work import StageWork
from backend.workers.worker_messages import Load
from kvcache.layout import CacheLayout, build_layout
from tests.fakes.paged_greedy import paged_greedy
from tests.fakes.tiny_models import make_checkpoint

PAGES = 40
PROMPTS = [[5, 9, 23], list(range(1, 31))]


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    """A warm-up freezes what the process holds, which here are tests."""
    yield
    gc.unfreeze()


def page_bytes(rank: StageWork) -> int:
    """What the rank's pages take, as measured."""
    return next(term.bytes for term in rank.measure().terms if term.name == "kv")


class Staged:
    """The ranks of a plan with one rank to a stage."""

    def __init__(self, files: ModelFiles, edges: list[int]) -> None:
        self.settings = EngineSettings(files=files, device="cpu", dtype="float32")
        self.facts: ModelFacts = describe(read_config(self.settings.files))
        self.plan: Plan = replace(plan_engine(self.settings), pages=PAGES, threads=1)
        self.layout: CacheLayout = build_layout(self.facts.layers, 4)
        self.order = Load(self.settings, self.plan, 0, self.facts.layers, Meeting("", ""))
        self.ranks: list[StageWork] = []
        self.weights_bytes: list[int] = []
        for first, stop in pairwise(edges):
            rank: StageWork = ModelRank()
            span = LayerSpan(first, stop, edges[-1], first, stop)
            loaded = rank.load_stage(self.order, span, lambda stage, done, total: None)
            assert len(loaded.kernel_orders) == stop - first
            self.weights_bytes.append(loaded.weights_bytes)
            self.ranks.append(rank)

    def execute(self, batch: Batch) -> list[Sampled | None]:
        hidden: HiddenStates | None = None
        for rank in self.ranks:
            answer = rank.run_stage(batch, hidden)
            if not isinstance(answer, HiddenStates):
                return answer
            answer.check("float32", batch.token_count, rank.hidden_columns)
            hidden = answer
        raise AssertionError("no stage had results")


def test_stages_without_some_groups_answer_as_one_rank_does(tmp_path: Path) -> None:
    staged = Staged(make_checkpoint("gemma3", tmp_path), [0, 1, 2, 3])  # a window, all positions, a window
    for rank in staged.ranks:
        rank.warm_up(lambda stage, done, total: None)
    alone: StageWork = ModelRank()
    alone.load(staged.order, lambda stage, done, total: None)
    assert {rank.groups for rank in staged.ranks} == {alone.groups} == {2}
    expected = paged_greedy(alone.execute, staged.layout, PROMPTS, 8, 16)
    assert paged_greedy(staged.execute, staged.layout, PROMPTS, 8, 16) == expected
    alone.warm_up(lambda stage, done, total: None)
    everything = page_bytes(alone)
    # A page holds as many positions as anywhere: 16 of two layers with windows, or 32 of the one without.
    assert [page_bytes(rank) for rank in staged.ranks] == [everything // 2, everything, everything // 2]


def test_the_starter_model_answers_in_two_stages_as_it_does_in_one(starter: ModelFiles) -> None:
    staged = Staged(starter, [0, 13, 30])
    alone: StageWork = ModelRank()
    loaded = alone.load(staged.order, lambda stage, done, total: None)
    # The table of tokens, which is also the output layer, is on both.
    table = staged.facts.vocabulary * staged.facts.hidden * 4
    assert sum(staged.weights_bytes) == pytest.approx(loaded.weights_bytes + table, rel=1e-3)
    expected = paged_greedy(alone.execute, staged.layout, PROMPTS, 12, 16)
    given = paged_greedy(staged.execute, staged.layout, PROMPTS, 12, 16)
    assert [[one.token for one in ours] for ours in given] == [[one.token for one in wanted] for wanted in expected]


def test_a_stage_takes_only_complete_hidden_states_of_its_form(tmp_path: Path) -> None:
    staged = Staged(make_checkpoint("llama", tmp_path), [0, 1, 3])
    first, last = staged.ranks
    assert (first.hidden_dtype, first.hidden_columns) == (last.hidden_dtype, last.hidden_columns) == ("float32", 64)
    handed: list[HiddenStates] = []

    def watched(batch: Batch) -> list[Sampled | None]:
        hidden = first.run_stage(batch, None)
        assert isinstance(hidden, HiddenStates)
        handed.append(hidden)
        for wrong in (
            HiddenStates("float32", hidden.rows, 64, bytes(hidden.data)[:-1]),
            HiddenStates("float32", hidden.rows + 1, 64, bytes(hidden.data) + bytes(256)),
            HiddenStates("bfloat16", hidden.rows, 128, hidden.data),
        ):
            with pytest.raises(ValueError, match="hidden states"):
                last.run_stage(batch, wrong)
        answer = last.run_stage(batch, hidden)
        assert not isinstance(answer, HiddenStates)
        return answer

    paged_greedy(watched, staged.layout, PROMPTS, 4, 16)
    # What has been handed on is nobody's to write to any more.
    assert len({bytes(one.data) for one in handed}) == len(handed)
    # A stage that sits a step out begins its transfers, of which there are none here, and says nothing.
    assert last.run_stage(Batch(9, ()), None) == []
