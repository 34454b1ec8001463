"""Every weight format: its product is that of the weight it gives back, which is near the weight it was given."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from quant.cpu.team import Team
from quant.weight_format import WEIGHT_FORMATS, Linear
from quant.weight_sizes import WEIGHT_SIZES, LinearShape, Storage, stored_bytes
from quant.weights.bits_and_bytes import bits_and_bytes

# columns, depth: whole blocks and vectors, parts of them, and a rank's uneven share.
SHAPES = [(96, 128), (64, 100), (37, 64), (1, 16), (50, 77)]
ROWS = [1, 2, 5, 40, 300]
# What rounding a normally distributed weight costs, by format: its error's root mean square over the weight's own.
# A broken scale or code costs more than twice that.
ERRORS = {"model": 0.0, "int8": 0.012, "nf4": 0.11, "fp8": 0.035}
# The most by which a product may differ from that of the weight given back, as parts of sum(|x| |w|), and of
# max|x| sum(|w|): int8 rounds an input to half of a 254th of a step of its largest, fp8 to 3 bits of its own.
PRODUCT_ERRORS = {"model": (3e-6, 0.0), "int8": (3e-6, 1 / (2 * 127 * 254)), "nf4": (3e-6, 0.0), "fp8": (2**-4, 2**-17)}
# bfloat16 rounds the weight that is given back, its products and the result.
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2**-7}
NAMES = sorted(WEIGHT_FORMATS)

both_types = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
every_format = pytest.mark.parametrize("name", NAMES)
every_shape = pytest.mark.parametrize(("columns", "depth"), SHAPES)


def weights(columns: int, depth: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A weight whose rows differ in size a thousandfold, and a bias."""
    random = torch.Generator().manual_seed(columns * depth)
    size = torch.logspace(-3, 0, columns)[:, None]
    weight = torch.randn(columns, depth, generator=random) * size
    return weight.to(dtype), torch.randn(columns, generator=random).to(dtype)


def inputs(rows: int, depth: int, dtype: torch.dtype) -> Tensor:
    """Rows of which every third has an outlier, as the inputs of large models have."""
    random = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, depth, generator=random)
    x[::3, 0] *= 50
    return x.to(dtype)


def stored(name: str, weight: Tensor, bias: Tensor | None, *, exact: bool = False) -> Linear:
    return WEIGHT_FORMATS[name].linear(weight, bias, Team(1), exact=exact)


def given_back(linear: Linear, columns: int) -> Tensor:
    return linear.rows(torch.arange(columns))


def test_every_format_has_its_formula() -> None:
    assert set(WEIGHT_SIZES) == set(WEIGHT_FORMATS)
    assert all(name == one.name for name, one in WEIGHT_FORMATS.items())


@every_format
@both_types
@every_shape
def test_the_weight_given_back_is_near_the_one_given(name: str, dtype: torch.dtype, columns: int, depth: int) -> None:
    weight, bias = weights(columns, depth, dtype)
    found = given_back(stored(name, weight, bias), columns)
    assert (found.dtype, found.shape) == (dtype, weight.shape)
    error = (found.double() - weight.double()).square().mean().sqrt() / weight.double().square().mean().sqrt()
    assert error <= ERRORS[name]
    # Nothing but "model" gives the very weight back: else a test of rounding would not see that nothing was rounded.
    assert (error == 0) == (name == "model")
    index = torch.tensor([columns - 1, 0, columns // 2])
    assert torch.equal(stored(name, weight, bias).rows(index), found[index])


@every_format
@both_types
@every_shape
def test_the_product_is_that_of_the_weight_given_back(name: str, dtype: torch.dtype, columns: int, depth: int) -> None:
    weight, bias = weights(columns, depth, dtype)
    linear = stored(name, weight, bias)
    dense = given_back(linear, columns).double()
    own, largest = PRODUCT_ERRORS[name]
    for rows in ROWS:
        x = inputs(rows, depth, dtype)
        expected = functional.linear(x.double(), dense, bias.double())
        sums = functional.linear(x.double().abs(), dense.abs(), bias.double().abs())
        most = x.double().abs().amax(1, keepdim=True) * dense.abs().sum(1)
        found = linear(x)
        assert (found.dtype, found.shape) == (dtype, expected.shape)
        assert ((found - expected).abs() <= (own + ROUNDING[dtype]) * sums + largest * most).all()


@every_format
@both_types
def test_a_bias_is_added_and_may_be_left_out(name: str, dtype: torch.dtype) -> None:
    weight, bias = weights(64, 64, dtype)
    x = inputs(3, 64, dtype) * 0.01
    with_bias, without = stored(name, weight, bias)(x), stored(name, weight, None)(x)
    torch.testing.assert_close(with_bias.float(), without.float() + bias.float(), rtol=0.02, atol=0.02)


@every_format
@both_types
def test_exact_results_are_float32_and_of_the_weight_as_given(name: str, dtype: torch.dtype) -> None:
    weight, _ = weights(70, 64, dtype)
    x = inputs(9, 64, dtype)
    found = stored(name, weight, None, exact=True)(x)
    assert found.dtype == torch.float32
    # Torch's own product rounds to its type before it is widened, and this is that of a processor's kernel.
    torch.testing.assert_close(found.double(), functional.linear(x.double(), weight.double()), rtol=1e-5, atol=1e-4)


@every_format
@both_types
def test_takes_strided_batched_and_no_rows(name: str, dtype: torch.dtype) -> None:
    weight, bias = weights(48, 64, dtype)
    linear = stored(name, weight, bias)
    x = inputs(10, 128, dtype).view(2, 5, 128)[..., :64]
    found = linear(x)
    assert found.shape == (2, 5, 48)
    torch.testing.assert_close(found, linear(x.contiguous()), rtol=0, atol=0)
    assert linear(x[:, :0]).shape == (2, 0, 48)


@every_format
@both_types
def test_rows_of_zeros_stay_zero(name: str, dtype: torch.dtype) -> None:
    weight, _ = weights(64, 64, dtype)
    weight[3] = 0
    linear = stored(name, weight, None)
    x = inputs(4, 64, dtype)
    x[1] = 0
    found = linear(x)
    assert (found[1] == 0).all()
    assert (found[:, 3] == 0).all()
    assert (linear.rows(torch.tensor([3])) == 0).all()
    assert found.isfinite().all()


@every_format
def test_what_is_not_finite_does_not_become_finite(name: str) -> None:
    weight, _ = weights(64, 64, torch.bfloat16)
    x = torch.zeros(2, 64).bfloat16()
    x[0, 3] = float("nan")
    found = stored(name, weight, None)(x)
    assert found[0].isnan().all()
    assert (found[1] == 0).all()


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_a_row_s_result_depends_on_no_other_row(name: str) -> None:
    weight, bias = weights(96, 128, torch.bfloat16)
    linear, x = stored(name, weight, bias), inputs(40, 128, torch.bfloat16)
    whole = linear(x)
    for row in (0, 1, 39):
        assert torch.equal(linear(x[row : row + 1])[0], whole[row]), name


@every_format
@both_types
def test_is_deterministic(name: str, dtype: torch.dtype) -> None:
    weight, bias = weights(96, 128, dtype)
    x = inputs(17, 128, dtype)
    first, second = stored(name, weight, bias), stored(name, weight.clone(), bias.clone())
    before = first(x)
    assert torch.equal(first(x), before)
    assert torch.equal(second(x), before)


@every_format
@both_types
@every_shape
@pytest.mark.parametrize("bias", [True, False])
def test_holds_the_bytes_of_its_formula(name: str, dtype: torch.dtype, columns: int, depth: int, bias: bool) -> None:
    weight, offsets = weights(columns, depth, dtype)
    storage = Storage(str(dtype).removeprefix("torch."), cuda=False)
    held = stored(name, weight, offsets if bias else None).bytes
    assert held == stored_bytes(name, LinearShape(columns, depth, bias), storage)
    kept = stored(name, weight, offsets if bias else None, exact=True).bytes
    assert kept == stored_bytes(name, LinearShape(columns, depth, bias, kept=True), storage)


def test_nf4_blocks_are_those_that_bitsandbytes_makes_of_the_whole_weight() -> None:
    weight, _ = weights(40, 128, torch.float32)
    library = bits_and_bytes()
    codes, state = library.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    expected = library.dequantize_4bit(codes, state)
    found = given_back(stored("nf4", weight, None), 40)
    # Scales are kept in bfloat16 on a processor.
    torch.testing.assert_close(found, expected, rtol=2**-8, atol=0)


@every_format
@both_types
@pytest.mark.parametrize("biased", [False, True])
def test_tensors_are_all_that_it_holds_and_may_lie_elsewhere(name: str, dtype: torch.dtype, biased: bool) -> None:
    weight, bias = weights(96, 128, dtype)
    linear = WEIGHT_FORMATS[name].linear(weight, bias if biased else None, None)
    assert sum(tensor.nbytes for tensor in linear.tensors) == linear.bytes
    x = inputs(5, 128, dtype)
    before = linear(x)
    elsewhere = [tensor.clone() for tensor in linear.tensors]
    for tensor, other in zip(linear.tensors, elsewhere, strict=True):
        tensor.data.view(torch.uint8).fill_(127)
        tensor.data = other
    assert torch.equal(linear(x), before)
