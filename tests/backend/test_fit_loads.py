"""A plan that is called fitting loads under its own options, and then holds what it said."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from backend.compose_engine import compose_engine
from backend.hardware.cluster import Cluster
from backend.hardware.machine import read_machine
from backend.hardware.memory import Memory
from backend.planner.fit.ask import FitAsk
from backend.planner.fit.fit import fit
from backend.planner.fit.known_model import KnownModel
from backend.surgery.describe import describe
from backend.surgery.load import read_config
from tests.fakes.fit_models import settings_of
from tests.fakes.tiny_models import make_checkpoint


def test_a_plan_that_fits_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDWISE_CACHE_HOME", str(tmp_path / "home"))
    files = make_checkpoint("llama", tmp_path / "model")
    machine = replace(read_machine(), gpus=(), memory=Memory(4 << 30, 2 << 30))
    model = KnownModel("tiny", describe(read_config(files)))
    found = fit(model, Cluster((machine,), "here"), FitAsk(users=3))
    assert found.best is not None
    plan = found.plans[found.best]
    settings = replace(settings_of(plan.options), files=files, kv_pool=plan.devices[0].terms[1].bytes)
    composed = compose_engine(settings, lambda stage, done, total: None)
    try:
        terms = {term.name: term.bytes for term in plan.devices[0].terms}
        assert composed.plan.pages * composed.plan.page_bytes == terms["kv"]
        assert composed.max_context >= found.ask.context if found.ask.context else False
        assert composed.weights_bytes[0] == pytest.approx(terms["weights"], rel=0.15)
    finally:
        composed.engine._executor.close()
