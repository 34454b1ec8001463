"""What all tests share: hypothesis repeats its examples; SHARDWISE_TEST_PROFILE=long looks longer, at random."""

from __future__ import annotations

import os

# Two test processes on two cores: a thread of torch that spins would take the other's. Read when torch is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# The GPU's kernels run under Triton's interpreter, for which it must be told before anything (transformers) loads it.
os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
from hypothesis import settings

from backend.kernel_cache import kernel_cache
from backend.library.files import ModelFiles
from backend.library.resolve import pull

# Before anything loads numba.
os.environ.setdefault("NUMBA_CACHE_DIR", str(kernel_cache()))

settings.register_profile("repeatable", max_examples=100, derandomize=True, deadline=None, database=None)
settings.register_profile("long", max_examples=3000, derandomize=False, deadline=None)
settings.load_profile(os.environ.get("SHARDWISE_TEST_PROFILE", "repeatable"))


@pytest.fixture(scope="session")
def starter() -> ModelFiles:
    """The starter model in the user's own cache, so that a machine downloads it once."""
    return pull("starter", lambda done, total: None)
