"""The expert kernels compiled for GPUs, without one: they must compile, and fit a device's shared memory."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.timeout(300)
def test_expert_kernels_compile_for_hopper_and_ada_within_shared_memory() -> None:
    """In a process of its own: in this one Triton interprets. All of them: python -m tests.bench.experts --compile."""
    pytest.importorskip("triton", reason="Triton is not installed: nothing can be compiled")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.bench.experts", "--compile", "--few"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for wanted in ("sm_90 qwen3", "sm_89 gpt-oss", "group", "up", "down", "sum", "float32"):
        assert wanted in done.stdout
