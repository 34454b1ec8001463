"""The kernels on a processor without bfloat16 instructions: the same answers by other means."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# In a process and a cache of its own: which instructions there are is settled when the kernels are compiled.
SCRIPT = """
import quant.cpu.instructions as instructions
instructions.PAIR_DOT = False
import torch
from torch.nn import functional
from quant.cpu import tiles
from quant.cpu.linear import PackedLinear
from quant.cpu.team import Team
assert tiles.PAIR_DOT is False
random = torch.Generator().manual_seed(1)
weight = torch.randn(80, 64, generator=random).bfloat16()
linear = PackedLinear(weight, None, Team(1))
for rows in (1, 7, 13):
    x = torch.randn(rows, 64, generator=random).bfloat16()
    expected = functional.linear(x.double(), weight.double())
    torch.testing.assert_close(linear(x).double(), expected, rtol=2**-8, atol=1e-3)
x = torch.zeros(1, 64).bfloat16()
x[0, 5] = float("nan")
assert linear(x).isnan().all()
print("equal")
"""


def test_two_multiply_adds_do_what_the_pair_product_does(tmp_path: Path) -> None:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=110,
        check=False,
    )  # fmt: skip
    assert done.stdout == "equal\n", done.stderr
