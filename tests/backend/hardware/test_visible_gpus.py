from __future__ import annotations

import os

import pytest

from backend.hardware.visible_gpus import show_gpus


def test_cuda_is_shown_the_gpus_of_a_plan_and_a_processors_plan_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    show_gpus(())
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"
    show_gpus(("GPU-b", "GPU-a"))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-b,GPU-a"
