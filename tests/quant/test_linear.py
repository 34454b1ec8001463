"""The packed linear against torch's own product in double precision."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from quant.cpu.linear import PANEL_ROWS, PackedLinear
from quant.cpu.team import Team
from quant.weight_format import WEIGHT_FORMATS
from quant.weights.model import TorchLinear

SHAPES = [(960, 576), (576, 1536), (40, 64), (100, 62), (16, 16), (49, 32)]
# Every remainder of the tiles of 6 rows, and more than one panel.
ROWS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, PANEL_ROWS + 7]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("columns", "depth"), SHAPES)
def test_equals_the_plain_product(dtype: torch.dtype, columns: int, depth: int) -> None:
    random = torch.Generator().manual_seed(columns)
    weight = torch.randn(columns, depth, generator=random).to(dtype)
    bias = torch.randn(columns, generator=random).to(dtype)
    linear = PackedLinear(weight, bias, team=Team(2))
    for rows in ROWS:
        x = torch.randn(rows, depth, generator=random).to(dtype)
        expected = functional.linear(x.double(), weight.double(), bias.double())
        found = linear(x)
        assert found.shape == expected.shape
        assert found.dtype == dtype
        # bfloat16 rounds the result once: 2^-9 of it, beside the float32 sum's own error.
        relative, absolute = (2**-8, 1e-3) if dtype == torch.bfloat16 else (1e-5, 1e-4)
        torch.testing.assert_close(found.double(), expected, rtol=relative, atol=absolute)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_takes_strided_and_batched_rows(dtype: torch.dtype) -> None:
    weight = torch.randn(48, 32).to(dtype)
    linear = PackedLinear(weight, None, team=Team(1))
    wide = torch.randn(2, 5, 64).to(dtype)
    x = wide[..., :32]
    torch.testing.assert_close(linear(x), functional.linear(x, weight), rtol=2**-7, atol=1e-3)
    assert linear(x[:, :0]).shape == (2, 0, 48)


def test_exact_results_are_not_rounded() -> None:
    weight, x = torch.randn(70, 64).bfloat16(), torch.randn(9, 64).bfloat16()
    expected = functional.linear(x.double(), weight.double())
    for linear in (PackedLinear(weight, None, Team(2), exact=True), TorchLinear(weight.float(), None, exact=True)):
        found = linear(x.to(linear.rows(torch.tensor([0])).dtype))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_gives_back_the_rows_it_was_made_of() -> None:
    weight = torch.randn(50, 64).bfloat16()
    index = torch.tensor([0, 49, 17, 17])
    assert torch.equal(PackedLinear(weight, None, team=Team(1)).rows(index), weight[index])
    assert torch.equal(TorchLinear(weight, None).rows(index), weight[index])


def test_infinities_and_nan_arrive_in_the_result() -> None:
    weight = torch.ones(16, 32).bfloat16()
    x = torch.zeros(2, 32).bfloat16()
    x[0, 3] = float("nan")
    found = PackedLinear(weight, None, team=Team(1))(x)
    assert found[0].isnan().all()
    assert (found[1] == 0).all()


def test_format_model_falls_back_to_torch_where_packing_does_not_serve() -> None:
    odd = torch.randn(8, 33).bfloat16()
    linear = WEIGHT_FORMATS["model"].linear(odd, None, Team(1))
    assert isinstance(linear, TorchLinear)
    x = torch.randn(3, 33).bfloat16()
    assert torch.equal(linear(x), functional.linear(x, odd))
    assert linear.bytes == odd.nbytes
