"""A model from its files to its report: what is refused before it is loaded, and what is kept for later starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from backend.accuracy.measure_model import measure_model
from backend.accuracy.messages import AccuracyRequest
from backend.accuracy.process import measure_accuracy
from backend.accuracy.store import AccuracyStore
from backend.compose_engine import compose_engine, plan_engine
from backend.engine_settings import EngineSettings
from backend.errors import SettingError
from backend.library.files import ModelFiles
from tests.fakes.tiny_models import make_checkpoint


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    """A random model and a tokenizer that counts characters."""
    folder = tmp_path_factory.mktemp("tiny")
    made = make_checkpoint("llama", folder)
    tokenizer = Tokenizer(models.BPE(vocab={chr(32 + index): index for index in range(96)}, merges=[]))
    tokenizer.save(str(folder / "tokenizer.json"))
    return made


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AccuracyStore:
    found = AccuracyStore(tmp_path / "accuracy")
    monkeypatch.setattr("backend.compose_engine.default_store", lambda: found)
    monkeypatch.setattr("backend.accuracy.measure_model.default_store", lambda: found)
    return found


def settings(files: ModelFiles, kv_format: str = "model") -> EngineSettings:
    return EngineSettings(files=files, dtype="float32", kv_format=kv_format, threads=1, kv_pool=4 << 20)


def nothing(stage: str, done: int, total: int) -> None: ...


@pytest.mark.parametrize(("tokens", "greedy", "most"), [(250, 32, 224), (256, 1, 255)])
def test_a_context_that_cannot_be_measured_says_how_much_can(
    files: ModelFiles, tokens: int, greedy: int, most: int
) -> None:
    stages: list[str] = []
    request = AccuracyRequest(settings=settings(files), tokens=tokens, greedy=greedy)
    with pytest.raises(SettingError, match=f"--kv-context {most} or less"):
        measure_model(request, lambda stage, done, total: stages.append(stage))
    assert stages == ["read"]


def test_all_formats_are_measured_as_far_as_the_context_goes(files: ModelFiles, store: AccuracyStore) -> None:
    report = measure_model(AccuracyRequest(settings=settings(files), greedy=2), nothing)
    assert [context.tokens for context in report.contexts] == [254]
    found = {one.kv_format: one for one in report.contexts[0].formats}
    assert list(found) == ["model", "fp8", "int8", "k=model,v=fp8", "k=model,v=int8"]
    assert found["model"].divergence == 0 < found["int8"].divergence < found["fp8"].divergence
    assert report.reason
    assert not store.folder.exists()  # fewer tokens than a start would measure


def test_a_process_of_its_own_finds_the_same(files: ModelFiles) -> None:
    request = AccuracyRequest(settings=settings(files), tokens=60, greedy=2)
    stages: list[str] = []
    report = measure_accuracy(request, lambda stage, done, total: stages.append(stage))
    assert list(dict.fromkeys(stages)) == ["read", "load", "pack", "measure"]
    assert report == measure_model(request, nothing)


def test_a_start_with_auto_measures_once_and_plans_with_it(
    files: ModelFiles, store: AccuracyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.accuracy.report.MOST_DIVERGENCE", 1.0)
    monkeypatch.setattr("backend.accuracy.report.MOST_CHANGE", 1.0)
    asked = settings(files, "auto")
    assert any("measured at the start" in reason for reason in plan_engine(asked).reasons)
    stages: list[str] = []
    first = compose_engine(asked, lambda stage, done, total: stages.append(stage))
    assert list(dict.fromkeys(stages)) == ["read", "load", "pack", "measure", "warm up"]
    assert first.plan.kv_format == "int8"
    assert any("mean KL divergence" in reason for reason in first.plan.reasons)
    assert len(list(store.folder.iterdir())) == 1
    assert plan_engine(asked).kv_format == "int8"
    stages.clear()
    second = compose_engine(asked, lambda stage, done, total: stages.append(stage))
    assert second.plan.kv_format == "int8"
    assert "measure" not in stages
