"""Models of the catalogue are answered offline, on one kind of hardware each; `catalogue` asks all pairs."""

from __future__ import annotations

from backend.library.model_table import catalogue
from tests.fit.catalogue import HARDWARE, answer

_EVERY = 3


def test_models_are_answered_offline_and_each_hardware_is_asked_about() -> None:
    models = [model.id for model in catalogue()][::_EVERY]
    assert len(models) >= len(HARDWARE)
    answers = [answer(model, HARDWARE[number % len(HARDWARE)]) for number, model in enumerate(models)]
    assert [each for each in answers if each.failure] == []
