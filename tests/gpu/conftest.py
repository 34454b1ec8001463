"""Tests on a real CUDA device: `python -m pytest -n0 tests/gpu`. Without one, each is skipped and says so."""

from __future__ import annotations

import os

# Here kernels run, and are not interpreted.
os.environ.pop("TRITON_INTERPRET", None)

import pytest
import torch


@pytest.fixture(autouse=True)
def _cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
