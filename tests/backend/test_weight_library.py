"""A missing bitsandbytes is an error for people, said before any weight is read."""

from __future__ import annotations

import sys

import pytest

from backend.compose_engine import load_served, plan_engine
from backend.engine_settings import EngineSettings
from backend.errors import SettingError
from backend.library.files import ModelFiles


@pytest.mark.parametrize("weights", ["int8", "nf4"])
def test_quantized_weights_without_the_library_are_refused(
    weights: str, starter: ModelFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    settings = EngineSettings(files=starter, device="cpu", weights=weights)
    plan = plan_engine(settings)
    assert plan.weight_format == weights
    stages: list[str] = []
    with pytest.raises(SettingError, match=f"--weights {weights} needs bitsandbytes") as refused:
        load_served(settings, plan, lambda stage, done, total: stages.append(stage))
    assert "pip install" in refused.value.hint
    assert stages == []
