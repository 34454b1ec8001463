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
CODES_SCRIPT = """
import quant.cpu.instructions as instructions
import quant.cpu.codes as codes
instructions.PAIR_DOT = False
codes.BYTE_TABLES = False
import numpy
import torch
from numba import njit
from quant.cpu.codes import widen_codes
from quant.cpu.tiles import gather_codes
from quant.kv.table import CODECS

_gather = gather_codes(1)


@njit
def widen(kind, source, target, count):
    widen_codes(kind, 1, source, target, count)


@njit
def gather(rows, fp8, left, pages, out):
    _gather(rows, fp8, left, 64, pages, 1, 0, 16, 0, out, 64, pages)


# Where each code of a group lies; -128 and NaN aside, which no sum survives.
place = torch.tensor([e % 32 // 8 * 16 + e // 32 * 8 + e % 8 for e in range(64)])
for kind, name in ((1, "int8"), (2, "fp8")):
    codes = torch.arange(256, dtype=torch.uint8)
    expected = codes.view(CODECS[name].dtype(torch.bfloat16)).float()
    packed = torch.empty(4, 64, dtype=torch.uint8)
    packed[:, place] = codes.view(4, 64)
    found = torch.empty(256).bfloat16()
    widen(kind, packed.data_ptr(), found.data_ptr(), 4)
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0, equal_nan=True)
    chosen = torch.randint(0, 120, (8, 64), dtype=torch.uint8)
    packed = torch.empty_like(chosen)
    packed[:, place] = chosen
    left = torch.randn(3, 32).bfloat16()  # [rows, 16 pairs]
    out = torch.zeros(3, 16)
    pages = numpy.array([packed.data_ptr()])
    gather(3, kind - 1, left.data_ptr(), pages.ctypes.data, out.data_ptr())
    columns = chosen.view(CODECS[name].dtype(torch.bfloat16)).float().view(16, 16, 2)
    sums = torch.einsum("rsp,scp->rc", left.float().view(3, 16, 2), columns)
    torch.testing.assert_close(out, sums, rtol=1e-4, atol=1e-2)
print("equal")
"""


def run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(folder), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=folder, capture_output=True, text=True, timeout=110,
        check=False,
    )  # fmt: skip


def test_two_multiply_adds_do_what_the_pair_product_does(tmp_path: Path) -> None:
    done = run(SCRIPT, tmp_path)
    assert done.stdout == "equal\n", done.stderr


def test_codes_are_widened_without_tables_of_bytes(tmp_path: Path) -> None:
    done = run(CODES_SCRIPT, tmp_path)
    assert done.stdout == "equal\n", done.stderr
