"""RMSNorm and gated activations on the processor against torch in double precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from backend.surgery.processor_kernels import ITEM_ROWS, GatedActivation, RowNorm, serves
from quant.cpu.team import Team

# One row, a few, and enough for the parallel loops.
SHAPES = [(1, 576), (3, 5, 64), (5 * ITEM_ROWS + 1, 64)]
# Relative: bfloat16 rounds the result once.
TOLERANCE = {torch.bfloat16: 2**-8, torch.float32: 2e-6}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_norm(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, weight = (torch.randn(shape) * 3).to(dtype), torch.randn(shape[-1])
    expected = functional.rms_norm(x.double(), shape[-1:], weight.double(), 1e-5)
    found = RowNorm(weight, 1e-5, Team(2))(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=TOLERANCE[dtype], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gated(dtype: torch.dtype, shape: tuple[int, ...], activation: str) -> None:
    # The edges of the exponential's range belong to the answer: huge gates are linear or zero.
    x = (torch.randn((*shape[:-1], 2 * shape[-1])) * 4).to(dtype)
    x.view(-1)[:4] = torch.tensor([-200.0, 200.0, -87.5, 0.0]).to(dtype)
    gate, up = x.double().chunk(2, -1)
    active: Tensor = functional.silu(gate) if activation == "silu" else functional.gelu(gate, approximate="tanh")
    found = GatedActivation(activation, Team(2))(x)
    assert found.shape == up.shape
    absolute = 1e-6 if activation == "silu" else 2e-5
    torch.testing.assert_close(found.double(), active * up, rtol=TOLERANCE[dtype], atol=absolute)


def test_nan_stays_in_its_row() -> None:
    x = torch.ones(2, 64)
    x[0, 7] = float("nan")
    assert RowNorm(torch.ones(64), 1e-6, Team(1))(x)[0].isnan().all()
    assert not RowNorm(torch.ones(64), 1e-6, Team(1))(x)[1].isnan().any()
    assert GatedActivation("silu", Team(1))(x)[0, 7].isnan()


def test_what_is_left_to_torch() -> None:
    assert not serves(torch.ones(2, 24), 24)
    assert not serves(torch.ones(2, 32, dtype=torch.float16), 32)
    assert serves(torch.ones(2, 32, dtype=torch.bfloat16), 32)
